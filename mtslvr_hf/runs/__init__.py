"""Runs of pre-training and fine-tuning: arguments, sizes, output folder."""
