"""Embedding models under one interface."""
