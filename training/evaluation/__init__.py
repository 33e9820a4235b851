"""Predictions, accuracy, attention metrics, faithfulness and reports."""
