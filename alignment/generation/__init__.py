"""Engines that draw answers, behind one interface: transformers (default), vLLM, any OpenAI-compatible server.

An engine takes prompts as token ids and gives answers as token ids. ``build_engine`` makes one from the keys of a
recipe; ``engine_refusal`` says which methods an engine cannot sample for.
"""

from alignment.generation.build import build_engine, check_engine, engine_refusal, read_options
from alignment.generation.engine import Decoding, Engine
from alignment.generation.options import ENGINES, ServerOptions, TransformersOptions, VLLMOptions

__all__ = [
    "ENGINES",
    "Decoding",
    "Engine",
    "ServerOptions",
    "TransformersOptions",
    "VLLMOptions",
    "build_engine",
    "check_engine",
    "engine_refusal",
    "read_options",
]
