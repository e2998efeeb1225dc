"""A language model behind an OpenAI-compatible endpoint, as a block of a recipe: where it is, and what it may take."""

import importlib
import os
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignment.errors import UserError
from alignment.generation.options import BaseURL
from alignment.oracles.kept import KeptOracle
from alignment.oracles.ledger import Accounts, Budget, Prices
from alignment.oracles.templates import PAIR
from alignment.oracles.verdicts import Reader


class EndpointSpec(BaseModel):
    """Who is asked, and how failures are met.

    Attributes:
        model: its name there.
        base_url: of the API, up to the version.
        api_key_env: the environment variable that holds the key; ``None`` for a server that needs none.
        version: of the model, where its name does not say; another version is asked anew.
        temperature: of the reply.
        timeout: seconds that a reply may take.
        retries: how often a request that failed is sent again.
        backoff: seconds before the first of them, doubled for each further one.
        concurrency: requests at once.
        prices: of a million tokens.
        max_unparsable: the largest share of replies without a verdict; beyond it the run stops.
        budget: what a run may spend.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str = Field(min_length=1)
    base_url: BaseURL
    api_key_env: str | None = None
    version: str | None = None
    temperature: float = Field(default=0.0, ge=0, le=2)
    timeout: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    retries: int = Field(default=5, ge=0)
    backoff: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    concurrency: int = Field(default=8, gt=0, le=256)
    prices: Prices | None = None
    max_unparsable: float = Field(default=0.1, ge=0, le=1)
    budget: Budget | None = None

    @model_validator(mode="after")
    def _money_has_prices(self) -> Self:
        if self.budget is not None and self.budget.money is not None and self.prices is None:
            raise ValueError("expected prices with budget.money, got none: what a call costs would not be known")
        return self

    def open(
        self,
        accounts: Accounts,
        *,
        template: str,
        max_tokens: int,
        reader: Reader,
        reads: Mapping[str, Any],
        placeholders: tuple[str, ...] = PAIR,
        unparsable: Literal["tie", "error", "retry"] = "tie",
        ledger: bool | str = True,
    ) -> KeptOracle:
        """Somebody to ask, whose replies are kept.

        Args:
            accounts: of the run.
            template: what is asked.
            max_tokens: of the reply.
            reader: what the reply means.
            reads: all that decides it, for the ledger.
            placeholders: of the template.
            unparsable: what becomes of a reply that means nothing.
            ledger: where verdicts are kept; true for the run folder.

        Raises:
            UserError: if the key is not set.
        """
        # It imports the client, which is an extra.
        from alignment.oracles.judge import Judge, Patience, Request, connect

        key = self.read_key()
        named = {"kind": "judge", "model": self.model, "base_url": self.base_url, "version": self.version}
        decoding = {"temperature": self.temperature, "max_tokens": max_tokens, **reads}
        account = accounts.open(
            {**named, "template": template, "decoding": decoding}, ledger=ledger, budget=self.budget
        )
        judge = Judge(
            connect(self.base_url, key=key, timeout=self.timeout),
            request=Request(
                model=self.model,
                template=template,
                placeholders=placeholders,
                temperature=self.temperature,
                max_tokens=max_tokens,
            ),
            reader=reader,
            account=account,
            patience=Patience(
                retries=self.retries,
                backoff=self.backoff,
                concurrency=self.concurrency,
                second_try=unparsable == "retry",
            ),
            prices=self.prices,
            key=key,
        )
        return KeptOracle(
            judge,
            account,
            unparsable="error" if unparsable == "error" else "tie",
            max_unparsable=self.max_unparsable,
        )

    def read_key(self) -> str:
        """The secret of the API; empty where it needs none.

        Raises:
            UserError: if the variable is not set.
        """
        if self.api_key_env is None:
            return ""
        key = os.environ.get(self.api_key_env, "")
        if not key:
            raise UserError(
                f"oracle.api_key_env: expected the key in the environment variable {self.api_key_env}, found it unset; "
                f"`export {self.api_key_env}=...` before the command"
            )
        return key


def check_client(what: str) -> None:
    """Refuse to go on without the client.

    Args:
        what: needs it.

    Raises:
        UserError: naming the extra.
    """
    try:
        importlib.import_module("openai")
    except ImportError:
        raise UserError(
            f"{what} needs the openai client, which is not installed; pip install 'nash-alignment[judge]'"
        ) from None
