"""The keys of a recipe that belong to one engine. This module stays light: the config reads it."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TransformersOptions(_Options):
    """The default engine.

    Attributes:
        continuous_batching: whether a sequence that has ended gives its place to the next one at once.
    """

    continuous_batching: bool = False


def _checked_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("expected a base_url such as https://host/v1")
    if url.username or url.password:
        raise ValueError("expected a base_url without a secret, which belongs into the variable api_key_env")
    return text


BaseURL = Annotated[str, AfterValidator(_checked_url)]
"""The address of an API, up to the version."""


class _HTTPOptions(_Options):
    """What every server needs: how many requests at once, how often a failed one is sent again, seconds to wait."""

    api_key_env: str | None = None
    concurrency: int = Field(default=16, gt=0)
    retries: int = Field(default=5, ge=0)
    timeout: float = Field(default=600.0, gt=0)


# Keys of a mode that the other one would not read.
_OF_SERVER = ("base_url", "model", "exchange_folder", "api_key_env", "concurrency", "retries", "timeout")
_OF_COLOCATE = ("gpu_memory_utilization", "max_model_len", "sleep")


class VLLMOptions(_HTTPOptions):
    """vLLM in this process, on the GPU that trains, or a vLLM server.

    Attributes:
        mode: where it runs.
        gpu_memory_utilization: share of the GPU's memory that vLLM may fill (colocate).
        max_model_len: longest prompt with its answer, in tokens; ``None`` for what the model allows (colocate).
        sleep: free vLLM's memory between two samplings (colocate).
        base_url: of the server, with ``/v1``.
        model: what the server calls the base model; ``None`` for the first one that it lists.
        exchange_folder: where weights are written for the server; it sees the same path.
    """

    mode: Literal["colocate", "server"] = "colocate"
    gpu_memory_utilization: float = Field(default=0.3, gt=0, lt=1)
    max_model_len: int | None = Field(default=None, gt=0)
    sleep: bool = True
    base_url: str | None = None
    model: str | None = None
    exchange_folder: str | None = None

    @model_validator(mode="after")
    def _only_keys_of_the_mode(self) -> Self:
        unread = _OF_SERVER if self.mode == "colocate" else _OF_COLOCATE
        given = [key for key in unread if key in self.model_fields_set]
        if given:
            raise ValueError(f"expected no {', '.join(given)} with mode: {self.mode}; nothing would read it")
        if self.mode == "server" and (self.base_url is None or self.exchange_folder is None):
            raise ValueError("expected base_url and exchange_folder with mode: server")
        return self


class ServerOptions(_HTTPOptions):
    """A model of any OpenAI-compatible server.

    Attributes:
        base_url: with ``/v1``.
        model: its name there.
        api_key_env: environment variable that holds the key; ``None`` for a server without one.
    """

    base_url: BaseURL
    model: str = Field(min_length=1)


class PolicyServerOptions(ServerOptions):
    """A server that draws the answers of a policy in training.

    Attributes:
        serves_policy: the user's word that the model is the policy at the start of the round.
    """

    serves_policy: bool = False


ENGINES: dict[str, type[_Options] | None] = {
    "transformers": TransformersOptions,
    "vllm": VLLMOptions,
    "openai": PolicyServerOptions,
    "enumerate": None,
}
"""Name of an engine -> its options. ``enumerate`` draws nothing: rows carry all responses."""
