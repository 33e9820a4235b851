"""Sharing a trained checkpoint on the Hugging Face Hub: its card, and the folder that goes up."""
