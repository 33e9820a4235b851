"""Query-conditioned visual attention for Hugging Face transformers. Importing registers the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor

from .configuration_qca import QCAConfig
from .modeling_qca import QCAForVisualQuestionAnswering, QCAModel, QCAPreTrainedModel
from .overlay_qca import overlay
from .pipeline_qca import QCAVisualQuestionAnsweringPipeline
from .processing_qca import QCAProcessor
from .version import __version__

AutoConfig.register("qca", QCAConfig)
AutoModel.register(QCAConfig, QCAModel)
AutoModelForVisualQuestionAnswering.register(QCAConfig, QCAForVisualQuestionAnswering)
AutoProcessor.register(QCAConfig, QCAProcessor)

QCAConfig.register_for_auto_class()
QCAModel.register_for_auto_class("AutoModel")
QCAForVisualQuestionAnswering.register_for_auto_class("AutoModelForVisualQuestionAnswering")
QCAProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "QCAConfig",
    "QCAForVisualQuestionAnswering",
    "QCAModel",
    "QCAPreTrainedModel",
    "QCAProcessor",
    "QCAVisualQuestionAnsweringPipeline",
    "__version__",
    "overlay",
]
