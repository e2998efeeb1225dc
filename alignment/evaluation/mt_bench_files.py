"""MT-Bench's files, and what its judges are shown: questions of two turns, conversations, reference answers.

Sources: 2306.05685 (sec. 3.4: reference answers) and the layouts of FastChat.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.data import Row, Turn, prompt_text
from alignment.errors import UserError
from alignment.evaluation.published import Record, check_distinct, read_records
from alignment.values import JsonValue

NUM_QUESTIONS = 80
REFERENCED = ("math", "reasoning", "coding")
"""Categories whose judge is shown reference answers."""

Texts = tuple[str, str]
"""Of the first and the second turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked in two turns.

    Attributes:
        id: as the file has it.
        category: of MT-Bench's eight.
        turns: the two messages.
        reference: answers that a judge may compare with.
        source: the line of the file.
    """

    id: str | int
    category: str
    turns: Texts
    reference: Texts | None
    source: str


def read_questions(path: Path, *, references: Path | None = None) -> tuple[Question, ...]:
    """FastChat's ``question.jsonl``: ``question_id``, ``category``, ``turns``.

    Args:
        path: the file.
        references: model answers to the questions of :data:`REFERENCED`, in the layout of :func:`read_answers`.

    Raises:
        UserError: if it is not the whole set, a question has not two turns, or lacks its reference.
    """
    records = read_records(path, "question_id", "category", "turns")
    check_distinct([record.name("question_id") for record in records], records, "a question")
    if len(records) != NUM_QUESTIONS:
        raise UserError(
            f"prompts.set: expected the {NUM_QUESTIONS} questions of mt_bench, found {len(records)}; give the whole "
            "file (prompts.limit takes some of it)"
        )
    known = {} if references is None else _read_turns(references)
    questions = []
    for record in records:
        identifier, category = record.value("question_id"), record.name("category")
        assert isinstance(identifier, str | int)
        needs = references is not None and category in REFERENCED
        if needs and str(identifier) not in known:
            raise UserError(f"{references}: expected a reference answer to question {identifier}, found none")
        questions.append(
            Question(
                id=identifier,
                category=category,
                turns=_two_texts(record.value("turns"), "turns", record),
                reference=known[str(identifier)] if needs else None,
                source=record.source,
            )
        )
    return tuple(questions)


def read_answers(path: Path, questions: Sequence[Question], asked: Sequence[Question]) -> tuple[Texts, ...]:
    """FastChat's ``model_answer/<model>.jsonl``: both answers to each question, the first of several choices.

    Args:
        path: the file.
        questions: the whole set.
        asked: those whose answers are returned, in their order.

    Raises:
        UserError: if it answers a question twice or one of another set, or one that is asked not at all.
    """
    answers = _read_turns(path)
    strange = [number for number in answers if number not in {str(question.id) for question in questions}]
    if strange:
        raise UserError(
            f"{path}: expected answers to the questions of the evaluation, found {len(strange)} to others, first to "
            f"question {strange[0]}; give the questions that were answered"
        )
    missing = [question.id for question in asked if str(question.id) not in answers]
    if missing:
        raise UserError(
            f"{path}: expected an answer to each of {len(asked)} questions, found none to {len(missing)}, first to "
            f"question {missing[0]}; a grade over the others would be of another set"
        )
    return tuple(answers[str(question.id)] for question in asked)


def answer_row(question: Question, model: str, answers: Texts) -> dict[str, JsonValue]:
    """A line that :func:`read_answers` reads."""
    choices: list[JsonValue] = [{"index": 0, "turns": list(answers)}]
    return {"question_id": question.id, "model_id": model, "choices": choices}


def conversation(question: Question, first_answer: str | None = None) -> Row:
    """What is answered: the first message, or with the answer to it the second one."""
    turns = [Turn("user", question.turns[0])]
    if first_answer is not None:
        turns += [Turn("assistant", first_answer), Turn("user", question.turns[1])]
    return Row(prompt=tuple(turns), source=question.source)


def shown_alone(question: Question, answers: Texts, turn: int) -> tuple[str, str]:
    """What a judge grades: the conversation up to the answer to a turn, and that answer."""
    so_far = conversation(question, answers[0] if turn == 2 else None)
    return prompt_text(so_far) + _reference(question, turn), answers[turn - 1]


def shown_together(question: Question, ours: Texts, theirs: Texts, turn: int) -> tuple[str, str, str]:
    """What a judge compares: the first message, and how two conversations went on up to the answer to a turn."""

    def went_on(answers: Texts) -> str:
        if turn == 1:
            return answers[0]
        turns = (Turn("assistant", answers[0]), Turn("user", question.turns[1]), Turn("assistant", answers[1]))
        return prompt_text(Row(prompt=turns, source=question.source))

    return question.turns[0] + _reference(question, turn), went_on(ours), went_on(theirs)


def _reference(question: Question, turn: int) -> str:
    if question.reference is None:
        return ""
    shown = zip(("first", "second"), question.reference[:turn], strict=False)
    return "".join(f"\n\nReference answer to the {name} message:\n{text}" for name, text in shown)


def _read_turns(path: Path) -> dict[str, Texts]:
    records = read_records(path, "question_id", "choices")
    numbers = [record.name("question_id") for record in records]
    check_distinct(numbers, records, "a question")
    return {
        number: _two_texts(_first_choice(record), "choices[0].turns", record)
        for number, record in zip(numbers, records, strict=True)
    }


def _first_choice(record: Record) -> JsonValue:
    choices = record.value("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first.get("turns") if isinstance(first, dict) else None


def _two_texts(value: JsonValue, name: str, record: Record) -> Texts:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], str):
        return value[0], value[1]
    raise UserError(f"{record.source}: expected two texts in {name!r}, found {str(value)[:60]}; repair the row")
