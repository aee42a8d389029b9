"""What is read of a chat completion, of all that servers say; the ledger keeps as much."""

from pydantic import BaseModel, Field


class Message(BaseModel):
    content: str | None = None


class Likely(BaseModel):
    """A token that might have stood there."""

    token: str
    logprob: float


class Position(BaseModel):
    top_logprobs: list[Likely] = []


class Logprobs(BaseModel):
    content: list[Position] | None = None


class Choice(BaseModel):
    message: Message
    finish_reason: str | None = None
    logprobs: Logprobs | None = None

    @property
    def likely(self) -> list[Likely]:
        """What might have stood at the first place of the answer."""
        positions = self.logprobs.content if self.logprobs else None
        return positions[0].top_logprobs if positions else []


class Usage(BaseModel):
    total_tokens: int


class Completion(BaseModel):
    model: str
    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None
