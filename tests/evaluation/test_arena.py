"""Arena-Hard: the closed form against a Bradley-Terry fit, intervals over prompts, style control by simulation."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from alignment.errors import UserError
from alignment.evaluation.arena import (
    STYLE,
    ArenaScore,
    Battle,
    Contest,
    Unit,
    Version,
    arena_score,
    fit_logistic,
    style_controlled,
    style_differences,
)
from alignment.evaluation.arena_files import parse_verdict, read_contests, read_style

FindData = Callable[[str], Path]

BATTLES = "preferences/arena_hard_historical_battles_2136.jsonl.gz"
# Wins, ties, battles and score, from the raw file by other code.
REAL = {
    "claude-3-5-sonnet-20240620": (480, 5, 544, 88.695),
    "gpt-4o": (478, 6, 554, 86.823),
    "gpt-4o-mini": (416, 7, 524, 80.057),
    "claude-3-opus-20240229": (384, 13, 514, 75.973),
}


def contest(*wins: float, prompts: Sequence[str] | None = None, count: int = 1, model: str = "ours") -> Contest:
    battles = tuple(
        Battle(prompt=prompt, win=win, count=count)
        for win, prompt in zip(wins, prompts or [str(place) for place in range(len(wins))], strict=True)
    )
    return Contest(model=model, baseline="base", category="all", battles=battles, num_dropped=0)


def scored(found: Contest, *, version: Version = "v0.1", unit: Unit = "prompt", num_samples: int = 200) -> ArenaScore:
    return arena_score(found, version=version, unit=unit, num_samples=num_samples, seed=0)


def bradley_terry(contests: Sequence[Contest]) -> dict[str, float]:
    """Scores by an unpenalised logistic regression on all battles, a strength for each model and 0 for the baseline."""
    rows = [(place, battle) for place, found in enumerate(contests) for battle in found.battles]
    strengths = fit_logistic(
        np.eye(len(contests))[[place for place, _ in rows]],
        np.array([battle.win for _, battle in rows]),
        np.array([float(battle.count) for _, battle in rows]),
        penalty=0.0,
    )
    # On the scale of ratings: 400 points are a factor of ten.
    ratings = 400.0 / np.log(10) * strengths
    return {
        found.model: float(100.0 / (1.0 + 10.0 ** (-rating / 400.0)))
        for found, rating in zip(contests, ratings, strict=True)
    }


# The closed form


def test_the_closed_form_is_bradley_terry_on_real_battles(real_data: FindData) -> None:
    """2,136 battles: both to three decimals, and to the value that was computed elsewhere."""
    contests = read_contests(real_data(BATTLES), version="v0.1")
    fitted = bradley_terry(contests)
    assert {found.model for found in contests} == REAL.keys()
    for found in map(scored, contests):
        assert (found.n_wins, found.n_ties, found.n_battles) == REAL[found.model][:3]
        assert found.score == pytest.approx(fitted[found.model], abs=1e-3)
        assert found.score == pytest.approx(REAL[found.model][3], abs=1e-3)
        assert found.n_prompts == 120 and found.baseline == "claude-3-haiku-20240307"


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([1, 3])), min_size=1, max_size=12))
def test_the_closed_form_is_bradley_terry(drawn: list[tuple[float, int]]) -> None:
    """Of any battles that are not all won or all lost."""
    battles = tuple(Battle(prompt=str(place), win=win, count=count) for place, (win, count) in enumerate(drawn))
    found = Contest(model="ours", baseline="base", category="all", battles=battles, num_dropped=0)
    expected = scored(found, num_samples=2).score
    if 0.0 < expected < 100.0:
        assert bradley_terry([found])["ours"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("version", "quantile"), [("v0.1", 2.262157), ("v2.0", 1.833113)])
@pytest.mark.parametrize(("win", "other_end"), [(1.0, "high"), (0.0, "low")])
def test_a_model_that_won_everything_has_a_one_sided_interval(
    win: float, other_end: str, version: Version, quantile: float
) -> None:
    """Its strength is infinite. Wilson's interval of ten of ten ends at 1 / (1 + t^2 / 10), with Student's t of 9
    degrees of freedom at the level of the version: 95 % in v0.1, 90 % in v2.0."""
    found = scored(contest(*[win] * 10), version=version)
    assert found.score == 100.0 * win == {"high": found.high, "low": found.low}[other_end]
    other = found.low if win else 100.0 - found.high
    assert other == pytest.approx(100.0 / (1.0 + quantile**2 / 10.0), abs=1e-4)


def test_one_prompt_says_nothing() -> None:
    found = scored(contest(1.0, 0.0, prompts=["a", "a"]))
    assert (found.score, found.low, found.high, found.n_prompts) == (50.0, 0.0, 100.0, 1)


def test_a_model_like_its_opponent_is_even() -> None:
    """20 ties are read as if one of 20 verdicts had been a win or a loss: with t = 2.093 of 19 degrees of freedom and
    c = (t / 20)^2 the interval reaches 50 sqrt(c / (1 + c)) = 5.20 points."""
    found = scored(contest(*[0.5] * 20))
    assert found.score == 50.0 and found.n_ties == 20
    assert (found.low, found.high) == pytest.approx((44.80, 55.20), abs=0.01)


# Intervals


def clustered(seed: int, num_prompts: int = 60) -> Contest:
    """Prompts that are easy or hard, two games on each, and strong verdicts three times."""
    generator = np.random.default_rng(seed)
    battles = [
        Battle(prompt=str(prompt), win=float(generator.uniform() < rate), count=int(generator.choice([1, 3])))
        for prompt, rate in enumerate(generator.beta(0.8, 0.8, size=num_prompts))
        for _ in range(2)
    ]
    return Contest(model="ours", baseline="base", category="all", battles=tuple(battles), num_dropped=0)


@pytest.mark.parametrize("seed", range(5))
def test_prompts_are_never_narrower_than_battles(seed: int) -> None:
    by_prompt, by_battle = (scored(clustered(seed), unit=unit, num_samples=1000) for unit in ("prompt", "battle"))
    assert by_prompt.score == by_battle.score
    assert by_prompt.high - by_prompt.low > 1.2 * (by_battle.high - by_battle.low)


@pytest.mark.slow
def test_intervals_over_prompts_cover_and_those_over_battles_do_not() -> None:
    """The true rate is 1/2 by symmetry. 400 data sets: an error of 1.1 points at 95 %."""
    covers = {unit: 0 for unit in ("prompt", "battle")}
    for seed in range(400):
        for unit in covers:
            found = scored(clustered(seed), unit=unit, num_samples=300)
            covers[unit] += found.low <= 50.0 <= found.high
    assert 0.91 < covers["prompt"] / 400 < 0.985
    assert covers["battle"] / 400 < 0.85


def test_versions_have_their_percentiles() -> None:
    """95 % in v0.1, 90 % in v2.0."""
    older, newer = (scored(clustered(0), version=version, num_samples=1000) for version in ("v0.1", "v2.0"))
    assert older.low < newer.low < newer.score < newer.high < older.high


# Style control


def style_world(effect: float, seed: int = 0) -> tuple[list[Contest], dict[tuple[str, str], Any]]:
    """Three models of known strength, the better ones longer; battles by strength plus effect times z-scored length."""
    generator = np.random.default_rng(seed)
    strengths, prompts = {"a": -0.5, "b": 0.0, "c": 0.7}, [str(prompt) for prompt in range(600)]
    style: dict[tuple[str, str], Any] = {}
    for name in ("base", *strengths):
        length = generator.gamma(20.0, 20.0 * np.exp(strengths.get(name, 0.0)), size=len(prompts))
        counts = generator.poisson(4.0, size=(len(prompts), 3))
        for place, prompt in enumerate(prompts):
            style[name, prompt] = np.array([round(length[place]), *counts[place]], dtype=np.float64)
    features = {
        name: style_differences(
            np.stack([style[name, prompt] for prompt in prompts]),
            np.stack([style["base", prompt] for prompt in prompts]),
            "v2.0",
        )
        for name in strengths
    }
    every = np.concatenate(list(features.values()))[:, 0]
    contests = []
    for name, strength in strengths.items():
        scaled = (features[name][:, 0] - every.mean()) / every.std()
        wins = generator.uniform(size=len(prompts)) < expit(strength + effect * scaled)
        contests.append(contest(*wins.astype(float), prompts=prompts, model=name))
    return contests, style


def controlled(contests: Sequence[Contest], style: Any, version: Version, num_samples: int = 2) -> Any:
    return style_controlled(contests, style, version=version, unit="prompt", num_samples=num_samples, seed=0)


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_a_planted_effect_of_style_is_found_and_strengths_are_unbiased(effect: float) -> None:
    """1,800 battles: errors near .06 of an effect, near 2.2 points of a score; the effect alone moves c by 15."""
    contests, style = style_world(effect)
    found = controlled(contests, style, "v2.0")
    assert found.effects["token_len"] == pytest.approx(effect, abs=0.2)
    assert all(abs(found.effects[name]) < 0.2 for name in STYLE[1:])
    truth = {"a": -0.5, "b": 0.0, "c": 0.7}
    for score in found.scores:
        assert score.score == pytest.approx(100.0 * expit(truth[score.model]), abs=6.0)
    raw = {found.model: scored(found).score for found in contests}
    biased = abs(raw["c"] - 100.0 * expit(0.7)) > 8.0
    assert biased == (effect > 0.0)


def test_the_penalty_of_v01_is_small_on_many_battles() -> None:
    """Default L2 on strengths in powers of ten: both versions agree on 600 battles up to their features. Of one model,
    half of its strength is the baseline's weakness."""
    contests, style = style_world(1.0)
    older, newer = (controlled(contests[2:], style, version) for version in ("v0.1", "v2.0"))
    for ours, theirs in zip(older.scores, newer.scores, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=3.0)


@pytest.mark.slow
def test_v01_is_scikit_learns_default_fit() -> None:
    """The design written out as upstream has it: every battle twice, a tie once as a win and once as a loss."""
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn: it is in the extra dev")
    contests, style = style_world(1.0)
    contests[0] = contest(*[0.5] * 600, prompts=[battle.prompt for battle in contests[0].battles], model="a")
    rows = [(place, found.model, battle) for place, found in enumerate(contests) for battle in found.battles]
    ours, theirs = (
        np.stack([style[name or model, battle.prompt] for _, model, battle in rows]) for name in ("", "base")
    )
    features = style_differences(ours, theirs, "v0.1")
    features = (features - features.mean(0)) / features.std(0)
    design = np.zeros((len(rows), 8))
    design[np.arange(len(rows)), [place for place, _, _ in rows]] = np.log(10)
    design[:, 3], design[:, 4:] = -np.log(10), features
    wins = np.array([battle.win for _, _, battle in rows])
    model = linear_model.LogisticRegression(fit_intercept=False, tol=1e-8)
    model.fit(np.concatenate([design, design]), np.concatenate([wins >= 0.5, wins > 0.5]))
    found = controlled(contests, style, "v0.1")
    weights = model.coef_[0]
    for place, score in enumerate(found.scores):
        expected = 100.0 * expit(np.log(10) * (weights[place] - weights[3]))
        assert score.score == pytest.approx(float(expected), abs=1e-3)
    assert list(found.effects.values()) == pytest.approx(weights[4:].tolist(), abs=1e-4)


def test_the_penalised_fit_is_at_its_minimum() -> None:
    generator = np.random.default_rng(0)
    design, wins, weight = generator.normal(size=(30, 4)), generator.uniform(size=30), generator.uniform(size=30)
    found = fit_logistic(design, wins, weight, penalty=1.0)
    slope = design.T @ (weight * (expit(design @ found) - wins)) + found
    assert np.abs(slope).max() < 1e-5


def test_a_model_that_won_everything_stays_out_of_the_regression() -> None:
    contests, style = style_world(1.0)
    perfect = contest(*[1.0] * 600, model="a")
    found = controlled([perfect, *contests[1:]], style, "v2.0")
    assert found.scores[0].score == found.scores[0].high == 100.0 and 98.0 < found.scores[0].low < 100.0
    alone = controlled(contests[1:], style, "v2.0")
    assert [score.score for score in found.scores[1:]] == [score.score for score in alone.scores]
    with pytest.raises(UserError, match="expected a model that won some battles and lost some, found none"):
        controlled([perfect], style, "v2.0")


def test_a_style_that_does_not_vary_has_no_effect() -> None:
    style = {(name, str(prompt)): np.ones(4) for name in ("ours", "base") for prompt in range(4)}
    found = controlled([contest(1.0, 0.0, 1.0, 1.0)], style, "v2.0")
    assert set(found.effects.values()) == {0.0} and found.scores[0].score == pytest.approx(75.0, abs=1e-4)
    del style["base", "2"]
    with pytest.raises(UserError, match="expected the style of base on 2, found none"):
        controlled([contest(1.0, 0.0, 1.0, 1.0)], style, "v2.0")


def test_features_of_both_versions() -> None:
    """By hand: tokens 30 and 10, headers 3 and 1, no lists, bold 0 and 2."""
    ours, theirs = np.array([[30.0, 3.0, 0.0, 0.0]]), np.array([[10.0, 1.0, 0.0, 2.0]])
    assert style_differences(ours, theirs, "v0.1")[0] == pytest.approx([20 / 41, 2 / 5, 0.0, -2 / 3])
    headers = (3 / 31 - 1 / 11) / (3 / 31 + 1 / 11 + 1)
    assert style_differences(ours, theirs, "v2.0")[0] == pytest.approx([0.5, headers, 0.0, -(2 / 11) / (13 / 11)])


# Files


def judgement(*labels: str | None, **changes: Any) -> dict[str, Any]:
    plain = {"question_id": "q", "model": "ours", "judge": "j", "games": [{"score": label} for label in labels]}
    return plain | changes


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def put(*rows: dict[str, Any], name: str = "ours.jsonl") -> Path:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return put


def test_the_model_is_shown_second_first(write: Callable[..., Path]) -> None:
    """Game 0 has the baseline as A: [[A>>B]] there is a strong loss, in game 1 a strong win."""
    (found,) = read_contests(write(judgement("A>>B", "A>B")), version="v0.1")
    assert found.battles == (Battle(prompt="q", win=0.0, count=3), Battle(prompt="q", win=1.0))
    assert found.baseline == "gpt-4-0314"
    assert scored(found).score == 25.0


def test_both_spellings_of_a_label(write: Callable[..., Path]) -> None:
    """v2.0 also knows A<B for B>A."""
    for label, other in (("A<<B", "B>>A"), ("A<B", "B>A"), ("B<A", "A>B"), ("B<<A", "A>>B"), ("B=A", "A=B")):
        rows = [judgement(text, text, uid="q", category="coding") for text in (label, other)]
        first, second = (read_contests(write(row), version="v2.0")[0].battles for row in rows)
        assert first == second


def test_games_without_a_verdict(write: Callable[..., Path]) -> None:
    """v0.1 drops the game, v2.0 both of the question; a label that does not exist is none."""
    rows = [
        judgement("A>B", None),
        judgement("A>B", "A>>>B", question_id="r"),
        judgement("B>A", "A>B", question_id="s"),
    ]
    path = write(*[row | {"category": "coding"} for row in rows])
    older, newer = (read_contests(path, version=version)[0] for version in ("v0.1", "v2.0"))
    assert (len(older.battles), older.num_dropped) == (4, 2)
    assert (len(newer.battles), newer.num_dropped) == (2, 4)
    assert scored(newer).n_dropped == 4 and scored(newer).n_prompts == 1


def test_verdicts_are_read_from_judgements(write: Callable[..., Path]) -> None:
    assert parse_verdict("[[A>B]], that is [[A>B]]") == "A>B"
    assert parse_verdict("[[A>B]] but then [[B>A]]") is None
    games = [{"judgment": "I say [[B>A]]"}, {"judgment": {"answer": "[[A=B]]"}}]
    (found,) = read_contests(write(judgement(games=games)), version="v0.1")
    assert [battle.win for battle in found.battles] == [1.0, 0.5]


def test_categories_have_their_baselines(write: Callable[..., Path]) -> None:
    rows = [
        judgement("A>B", "A>B", uid=str(place), category=category)
        for place, category in enumerate(("coding", "creative_writing"))
    ]
    found = read_contests(write(*rows), version="v2.0")
    assert [item.baseline for item in found] == ["o3-mini-2025-01-31", "gemini-2.0-flash-001"]
    (named, _) = read_contests(write(*rows), version="v2.0", baseline="mine")
    assert named.baseline == "mine"


def test_style_counts_are_read(write: Callable[..., Path], tmp_path: Path) -> None:
    """Headers and bold by kind are added up; both versions' names, files and folders."""
    counts = {"token_len": 9, "header_count": {"h1": 1, "h2": 2}, "list_count": {"ordered": 0}, "bold_count": {"**": 4}}
    write({"question_id": "q", "model_id": "a", "conv_metadata": counts}, name="a.jsonl")
    path = write({"uid": "q", "model": "b", "metadata": counts}, name="b.jsonl")
    found = read_style([tmp_path])
    assert {key: value.tolist() for key, value in found.items()} == {
        ("a", "q"): [9.0, 3.0, 0.0, 4.0],
        ("b", "q"): [9.0, 3.0, 0.0, 4.0],
    }
    assert read_style([path]).keys() == {("b", "q")}
    with pytest.raises(UserError, match=r"c.jsonl:1: expected counts in 'metadata', found none"):
        read_style([write({"uid": "q", "model": "b", "metadata": None}, name="c.jsonl")])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([judgement("A>B", "A>B")] * 2, r"jsonl:2: expected a model and a question once"),
        ([judgement("A>B")], r"jsonl:1: expected two games, one in each order"),
        ([judgement("A>B", "A>B", games=[1, 2])], r"jsonl:1: expected games with a 'score' or a 'judgment', found 1"),
        ([judgement("A>B", "A>B", model="gpt-4-0314")], r"jsonl:1: expected a model other than the baseline"),
        ([judgement("nonsense", None)], r"expected one verdict at least on ours, found none"),
        ([judgement("A>B", "A>B", category="poems")], r"one of the categories .* found 'poems'; name the baseline"),
        ([{"model": "ours"}], r"jsonl:1: expected a column 'games', found 'model'"),
        (
            [{"question_id": 0, "model_a": "a", "model_b": "b", "winner": "tie"}],
            r"expected one model that is in all battles, found a, b; name it by --baseline",
        ),
    ],
)
def test_what_cannot_be_read_is_named(write: Callable[..., Path], rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_contests(write(*rows), version="v0.1")


def test_battles_against_others_are_refused(write: Callable[..., Path]) -> None:
    rows = [
        {"question_id": 0, "model_a": "a", "model_b": "base", "winner": "model_a"},
        {"question_id": 1, "model_a": "base", "model_b": "a", "winner": "model_a"},
        {"question_id": 2, "model_a": "base", "model_b": "a", "winner": "both"},
    ]
    (found,) = read_contests(write(*rows), version="v0.1", baseline="base")
    assert [battle.win for battle in found.battles] == [1.0, 0.0] and found.num_dropped == 1
    with pytest.raises(UserError, match=r"jsonl:1: expected a battle against c, found a and base"):
        read_contests(write(*rows), version="v0.1", baseline="c")
