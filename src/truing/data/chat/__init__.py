"""From records to trees of tokens: the only place that knows chat templates."""

from truing.data.chat.encoding import CHUNK, Encoding, EncodingReport, encode_all
from truing.data.chat.template import TemplateError
from truing.data.chat.tokenizer import ChatTokenizer, Encoded, Note, Problem, Style

__all__ = [
    "CHUNK",
    "ChatTokenizer",
    "Encoded",
    "Encoding",
    "EncodingReport",
    "Note",
    "Problem",
    "Style",
    "TemplateError",
    "encode_all",
]
