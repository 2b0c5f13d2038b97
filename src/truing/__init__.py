"""Truing brings a language model into line with what people prefer, and shows why it worked."""

__version__ = "0.1.0"
