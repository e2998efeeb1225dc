"""One contract for all methods: whatever the file, the same things are true of its card and its loss."""

import ast
import copy
import dataclasses
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.errors import MissingAnchorError, UserError
from alignment.methods import build_method, load_card, method_names
from alignment.methods._card import example_options
from alignment.types import Feedback, LossInputs, LossOutput, Method, Needs
from tests.determinism import Determined
from tests.methods.runs import build, check_solution, load_tests, reaches_solution

NAMES = method_names()

# Their returns contain log-probs behind a stop-gradient, so the gradient is on purpose not that of the value; tests of
# the single methods check it against the exact policy gradient.
STOP_GRADIENT = ("maxmin", "nash_md", "nash_mp", "nash_prox", "spo")


class Anchors(dict[str, Tensor]):
    """Remembers what was read."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)


def make_inputs(
    method: Method,
    *,
    num_prompts: int = 3,
    num_completions: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> LossInputs:
    """Random inputs of the kind that the method needs."""
    needs = method.needs
    generator = torch.Generator().manual_seed(seed)
    if num_completions is None:
        # Losses with statistics over the micro-batch read hard-labelled pairs or single responses.
        num_completions = 1 if needs.mismatched else 2 if needs.micro_batch_statistics else 3
    shape = (num_prompts, num_completions)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype)

    prefs_BGG = torch.rand(*shape, num_completions, generator=generator, dtype=dtype)
    if needs.micro_batch_statistics:
        prefs_BGG = (prefs_BGG > 0.5).to(dtype)
    prefs_BGG = prefs_BGG.tril(-1) + (1 - prefs_BGG.tril(-1)).transpose(1, 2).triu(1) + 0.5 * torch.eye(num_completions)
    feedback = {
        "pairs": Feedback(prefs_KBGG=prefs_BGG[None].to(dtype)),
        "prefs": Feedback(prefs_KBGG=prefs_BGG[None].to(dtype)),
        "wins": Feedback(wins_KBG=torch.rand(1, *shape, generator=generator, dtype=dtype)),
        "scores": Feedback(
            scores_KBG=(torch.rand(1, *shape, generator=generator, dtype=dtype) > 0.5).to(dtype)
            if needs.mismatched
            else torch.rand(1, *shape, generator=generator, dtype=dtype)
        ),
    }[needs.feedback]
    tokens_BGT = -normal(*shape, 4).abs() - 0.1
    mask_BGT = torch.ones(*shape, 4, dtype=torch.bool)
    is_token_level = needs.per_token or needs.confidence
    return LossInputs(
        logps_BG=tokens_BGT.sum(-1),
        lengths_BG=torch.randint(2, 6, shape, generator=generator),
        valid_BG=torch.ones(shape, dtype=torch.bool),
        feedback=feedback,
        anchors=Anchors({name: -normal(*shape).abs() * 2 - 2 for name in needs.anchor_columns()}),
        token_logps_BGT=tokens_BGT if is_token_level else None,
        token_mask_BGT=mask_BGT if is_token_level else None,
        token_anchors=Anchors({name: -normal(*shape, 4).abs() - 0.1 for name in needs.anchor_columns()})
        if needs.per_token
        else {},
        token_excess_BGT=normal(*shape, 4) if needs.confidence else None,
        mismatched_logps_B=-normal(num_prompts).abs() - 3 if needs.mismatched else None,
        mismatched_anchors=Anchors({name: -normal(num_prompts).abs() - 3 for name in needs.anchor_columns()})
        if needs.mismatched
        else {},
    )


def with_logps(x: LossInputs, values: Tensor, *, per_token: bool) -> LossInputs:
    """The inputs with other log-probs: per token [B, G, T] where the loss reads tokens, else sums [B, G]."""
    if per_token:
        return dataclasses.replace(x, logps_BG=values.sum(-1), token_logps_BGT=values)
    return dataclasses.replace(x, logps_BG=values)


def differentiable(method: Method, x: LossInputs) -> Tensor:
    """The log-probs that the loss differentiates."""
    values = x.token_logps_BGT if method.needs.per_token else x.logps_BG
    assert values is not None
    return values.detach().clone().requires_grad_()


def value_and_grad(method: Method, x: LossInputs) -> tuple[LossOutput, Tensor]:
    values = differentiable(method, x)
    output = method.loss(with_logps(x, values, per_token=method.needs.per_token))
    (grad,) = torch.autograd.grad(output.loss_B.sum(), values)
    return output, grad


def padded(x: LossInputs, junk: float) -> LossInputs:
    """The same groups with one padded completion more, which holds junk everywhere."""

    def pad(tensor: Tensor, dim: int, value: float) -> Tensor:
        extra = torch.full_like(tensor.narrow(dim, 0, 1), value)
        return torch.cat([tensor, extra], dim)

    feedback = x.feedback
    prefs_KBGG = feedback.prefs_KBGG
    if prefs_KBGG is not None:
        prefs_KBGG = pad(pad(prefs_KBGG, 2, 0.3), 3, 0.7)
    return dataclasses.replace(
        x,
        logps_BG=pad(x.logps_BG, 1, junk),
        lengths_BG=pad(x.lengths_BG, 1, 0),
        valid_BG=pad(x.valid_BG, 1, False),
        feedback=Feedback(
            prefs_KBGG=prefs_KBGG,
            wins_KBG=None if feedback.wins_KBG is None else pad(feedback.wins_KBG, 2, 0.9),
            scores_KBG=None if feedback.scores_KBG is None else pad(feedback.scores_KBG, 2, 5.0),
        ),
        anchors={name: pad(values_BG, 1, -junk) for name, values_BG in x.anchors.items()},
        token_logps_BGT=None if x.token_logps_BGT is None else pad(x.token_logps_BGT, 1, junk),
        token_mask_BGT=None if x.token_mask_BGT is None else pad(x.token_mask_BGT, 1, True),
        token_anchors={name: pad(values_BGT, 1, -junk) for name, values_BGT in x.token_anchors.items()},
        token_excess_BGT=None if x.token_excess_BGT is None else pad(x.token_excess_BGT, 1, junk),
    )


def permuted(x: LossInputs, order: Tensor) -> LossInputs:
    """The same groups with their completions in another order."""
    feedback = x.feedback
    return dataclasses.replace(
        x,
        logps_BG=x.logps_BG[:, order],
        lengths_BG=x.lengths_BG[:, order],
        feedback=Feedback(
            prefs_KBGG=None if feedback.prefs_KBGG is None else feedback.prefs_KBGG[:, :, order][..., order],
            wins_KBG=None if feedback.wins_KBG is None else feedback.wins_KBG[..., order],
            scores_KBG=None if feedback.scores_KBG is None else feedback.scores_KBG[..., order],
        ),
        anchors={name: values_BG[:, order] for name, values_BG in x.anchors.items()},
        token_logps_BGT=None if x.token_logps_BGT is None else x.token_logps_BGT[:, order],
        token_anchors={name: values_BGT[:, order] for name, values_BGT in x.token_anchors.items()},
        token_excess_BGT=None if x.token_excess_BGT is None else x.token_excess_BGT[:, order],
    )


@pytest.fixture(params=NAMES)
def method(request: pytest.FixtureRequest) -> Method:
    return build(request.param)


def test_card_declares_itself(method: Method) -> None:
    """Cards are frozen, cite a paper, and say why where they name no solution."""
    assert dataclasses.is_dataclass(method)
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
        method.needs = None  # type: ignore[misc]
    assert method.paper.arxiv and method.paper.arxiv in method.paper.bibtex("key")
    assert method.iterate in ("last", "average")
    assert (method.solution == "none") <= bool(method.no_solution)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_missing_options_quote_the_paper(name: str) -> None:
    """An option without a default is an error that quotes the paper's value; every option says what the paper used."""
    card = load_card(name)
    fields = dataclasses.fields(card)  # type: ignore[arg-type]
    assert all(spec.metadata["paper"] for spec in fields)
    required = [spec for spec in fields if spec.default is dataclasses.MISSING]
    if required:
        with pytest.raises(UserError, match="missing option") as error:
            build_method({"name": name})
        assert all(spec.metadata["paper"] in str(error.value) for spec in required)
    if not isinstance(card.needs, Needs):  # it depends on the options
        assert build_method({"name": name, **example_options(card)}).needs


def test_shapes(method: Method) -> None:
    """One loss and one weight per prompt; metrics per prompt, without gradient."""
    output, grad = value_and_grad(method, make_inputs(method))
    assert output.loss_B.shape == output.weight_B.shape == (3,)
    assert grad.isfinite().all() and output.loss_B.isfinite().all()
    for value_B in output.metrics.values():
        assert value_B.shape == (3,) and not value_B.requires_grad


def test_a_gpu_refuses_nothing_under_full_determinism(method: Method) -> None:
    """Neither in the loss nor in its gradient."""
    with Determined():
        value_and_grad(method, make_inputs(method))


@pytest.mark.parametrize("junk", [1e4, float("nan")])
def test_padding_changes_nothing(method: Method, junk: float) -> None:
    """A padded completion reaches neither loss nor weight nor gradient, whatever it holds."""
    if method.needs.mismatched:
        pytest.skip("groups have one response, so there is no padding")
    x = make_inputs(method)
    expected, expected_grad = value_and_grad(method, x)
    try:
        output, grad = value_and_grad(method, padded(x, junk))
    except UserError:
        assert method.needs.micro_batch_statistics, "only losses for pairs may refuse a wider group"
        return
    torch.testing.assert_close(output.loss_B, expected.loss_B, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.weight_B, expected.weight_B, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad[:, :-1], expected_grad, rtol=0, atol=1e-12)
    assert (grad[:, -1] == 0).all()


def test_order_of_completions_does_not_matter(method: Method) -> None:
    """Invariants 16 and 89: relabelling the responses of a group, feedback included, leaves its loss as it is."""
    x = make_inputs(method)
    order = torch.arange(x.logps_BG.shape[1]).flip(0)
    output, grad = value_and_grad(method, permuted(x, order))
    expected, expected_grad = value_and_grad(method, x)
    torch.testing.assert_close(output.loss_B, expected.loss_B, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, expected_grad[:, order], rtol=0, atol=1e-12)


# Point losses, NLL terms, and a margin made of reference probabilities see more than differences.
NOT_SHIFT_INVARIANT = (
    *("apo_down", "apo_zero", "bco_pair", "contrastive_cpo", "cpo", "cpo_simpo", "dpop", "kto", "nca_pair", "orpo"),
    *("rpo", "slic", "sppo", "sppo_hard", "lipo", "hypo", "maxmin", "nash_md", "nash_mp", "nash_prox", "spo"),
)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_SHIFT_INVARIANT])
def test_a_constant_per_prompt_changes_no_ratio_loss(name: str) -> None:
    """Invariant 17: the same constant on all log-probs of a prompt, of the policy or of an anchor, cancels.

    Lengths are 1 here: a constant on sums is no constant on means over tokens.
    """
    method = build(name)
    x = make_inputs(method)
    x = dataclasses.replace(x, lengths_BG=torch.ones_like(x.lengths_BG))
    shift_B1 = torch.tensor([[0.3], [-1.2], [2.0]], dtype=torch.float64)
    shifted = [
        dataclasses.replace(x, logps_BG=x.logps_BG + shift_B1),
        *(
            dataclasses.replace(x, anchors={**x.anchors, column: x.anchors[column] + shift_B1})
            for column in method.needs.anchor_columns()
        ),
    ]
    for other in shifted:
        torch.testing.assert_close(method.loss(other).loss_B, method.loss(x).loss_B, rtol=0, atol=1e-10)


def test_prompts_do_not_mix(method: Method) -> None:
    """The loss of a prompt is its own, unless the card says that a micro-batch is coupled."""
    x = make_inputs(method)
    whole = method.loss(x)
    if method.needs.micro_batch_statistics:
        return
    first = dataclasses.replace(
        x,
        logps_BG=x.logps_BG[:1],
        lengths_BG=x.lengths_BG[:1],
        valid_BG=x.valid_BG[:1],
        feedback=Feedback(
            prefs_KBGG=None if x.feedback.prefs_KBGG is None else x.feedback.prefs_KBGG[:, :1],
            wins_KBG=None if x.feedback.wins_KBG is None else x.feedback.wins_KBG[:, :1],
            scores_KBG=None if x.feedback.scores_KBG is None else x.feedback.scores_KBG[:, :1],
        ),
        anchors={name: values_BG[:1] for name, values_BG in x.anchors.items()},
        token_logps_BGT=None if x.token_logps_BGT is None else x.token_logps_BGT[:1],
        token_mask_BGT=None if x.token_mask_BGT is None else x.token_mask_BGT[:1],
        token_anchors={name: values_BGT[:1] for name, values_BGT in x.token_anchors.items()},
        token_excess_BGT=None if x.token_excess_BGT is None else x.token_excess_BGT[:1],
    )
    torch.testing.assert_close(method.loss(first).loss_B, whole.loss_B[:1], rtol=0, atol=1e-12)


def test_a_missing_anchor_is_named(method: Method) -> None:
    """Each declared anchor is needed: without it the loss raises, and says which one and what is there."""
    x = make_inputs(method)
    for name in method.needs.anchor_columns():

        def without(columns: Mapping[str, Tensor], missing: str = name) -> dict[str, Tensor]:
            return {key: value for key, value in columns.items() if key != missing}

        stripped = dataclasses.replace(
            x,
            anchors=without(x.anchors),
            token_anchors=without(x.token_anchors),
            mismatched_anchors=without(x.mismatched_anchors),
        )
        with pytest.raises(MissingAnchorError, match=f"'{name}'"):
            method.loss(stripped)


def test_undeclared_anchors_are_never_read(method: Method) -> None:
    """What a loss reads is what its card declares, no more."""
    x = make_inputs(method)
    trap = torch.full_like(x.logps_BG, torch.nan)
    spies = [
        Anchors(
            {
                **columns,
                "ref_": trap,
                "unknown": trap,
                **{n: trap for n in ("ref", "prev", "target") if n not in columns},
            }
        )
        for columns in (x.anchors, x.token_anchors, x.mismatched_anchors)
    ]
    method.loss(dataclasses.replace(x, anchors=spies[0], token_anchors=spies[1], mismatched_anchors=spies[2]))
    assert set().union(*(spy.read for spy in spies)) == set(method.needs.anchor_columns())


def test_weights_do_not_depend_on_log_probs(method: Method) -> None:
    """The trainer counts an effective batch before it has log-probs."""
    x = make_inputs(method)
    other = with_logps(x, differentiable(method, x) * 0.0, per_token=method.needs.per_token)
    torch.testing.assert_close(method.loss(other).weight_B, method.loss(x).weight_B, rtol=0, atol=0)


def test_anchors_and_feedback_get_no_gradient(method: Method) -> None:
    """Gradients reach the policy's log-probs only."""
    x = make_inputs(method)
    anchors = {name: values_BG.clone().requires_grad_() for name, values_BG in x.anchors.items()}
    values = differentiable(method, x)
    output = method.loss(with_logps(dataclasses.replace(x, anchors=anchors), values, per_token=method.needs.per_token))
    grads = torch.autograd.grad(output.loss_B.sum(), [values, *anchors.values()], allow_unused=True)
    assert grads[0] is not None and all(grad is None for grad in grads[1:])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STOP_GRADIENT])
def test_gradcheck(name: str) -> None:
    """Autograd agrees with finite differences in float64, inside one ordering of scores (invariant 93)."""
    method = build(name)
    x = make_inputs(method)

    def loss(values: Tensor) -> Tensor:
        return method.loss(with_logps(x, values, per_token=method.needs.per_token)).loss_B

    assert torch.autograd.gradcheck(loss, differentiable(method, x), eps=1e-6, atol=1e-6)


def test_float32_stays_finite_far_out(method: Method) -> None:
    """Log-probs of long sequences, far from the anchors, give finite values and gradients in float32."""
    x = make_inputs(method, dtype=torch.float32)
    values = differentiable(method, x).detach() * 60.0
    output, grad = value_and_grad(method, with_logps(x, values, per_token=method.needs.per_token))
    assert output.loss_B.isfinite().all() and grad.isfinite().all()


def test_reaches_its_declared_solution(method: Method, request: pytest.FixtureRequest) -> None:
    """Theorem: trained on a game, the method ends where its card says."""
    check_solution(request.node.callspec.params["method"], method)


# Mutation: a sign flipped in any loss must make the previous test fail ----------------------------------------------


class Negated:
    """A method whose loss has the wrong sign."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def __getattr__(self, name: str) -> object:
        return getattr(self._method, name)

    def loss(self, x: LossInputs) -> LossOutput:
        output = self._method.loss(x)
        return dataclasses.replace(output, loss_B=-output.loss_B)


def test_no_negated_loss_survives() -> None:
    """Flip the sign of each loss as a whole, train, and count the survivors: none."""
    survivors = [name for name in NAMES if reaches_solution(name, Negated(build(name)))]  # type: ignore[arg-type]
    assert survivors == []


class FlipSign(ast.NodeTransformer):
    """Flips the ``index``-th sign: ``a + b`` <-> ``a - b``, ``-a`` -> ``a``."""

    def __init__(self, index: int) -> None:
        self.index, self.count, self.line = index, 0, 0

    def _is_chosen(self, node: ast.AST) -> bool:
        self.count += 1
        if self.count - 1 == self.index:
            self.line = node.lineno  # type: ignore[attr-defined]
            return True
        return False

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Add | ast.Sub) and self._is_chosen(node):
            node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return node.operand if isinstance(node.op, ast.USub) and self._is_chosen(node) else node


# Not part of the mathematics: what is declared, validated, or only logged.
NOT_MUTATED = ("__post_init__", "needs", "solution", "iterate", "welfare", "base_method", "no_solution", "_diagnostics")


def _loss_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name not in NOT_MUTATED:
            yield node


def mutants(name: str) -> Iterator[tuple[int, types.ModuleType]]:
    """The module of the method with one sign flipped, for every sign, and the line of the flip."""
    module = sys.modules[load_card(name).__module__]
    source = ast.parse(inspect.getsource(module))
    index = 0
    while True:
        tree, flip = copy.deepcopy(source), FlipSign(index)
        for function in _loss_functions(tree):
            function.body = [flip.visit(statement) for statement in function.body]
        if flip.count <= index:
            return
        mutant = types.ModuleType(module.__name__)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, module.__name__, mutant)
            exec(compile(ast.fix_missing_locations(tree), f"<{name} with a sign flipped>", "exec"), mutant.__dict__)
            yield flip.line, mutant
        index += 1


def _cases(test: Callable[..., None]) -> Iterator[dict[str, object]]:
    """Arguments of a test: one set for each combination of its parameters; none for a test that wants fixtures."""
    cases: list[dict[str, object]] = [{}]
    for mark in vars(test).get("pytestmark", ()):
        if mark.name == "parametrize":
            names = (
                [name.strip() for name in mark.args[0].split(",")] if isinstance(mark.args[0], str) else mark.args[0]
            )
            rows = [value if len(names) > 1 else (value,) for value in mark.args[1]]
            cases = [{**case, **dict(zip(names, row, strict=True))} for case in cases for row in rows]
    wanted = set(inspect.signature(test).parameters)
    yield from (case for case in cases if set(case) == wanted)


def fails_its_own_tests(name: str) -> bool:
    """Run the method's test module, freshly imported, against whatever stands in ``sys.modules`` for the method."""
    spec = importlib.util.spec_from_file_location(f"fresh_test_{name}", Path(__file__).parent / f"test_{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [value for key, value in vars(module).items() if key.startswith("test_")]
    for test in tests:
        for case in _cases(test):
            try:
                test(**case)
            except Exception:  # whatever stops a mutant is a kill
                return True
    return False


def test_the_unchanged_methods_pass_their_own_tests() -> None:
    """The mutation test below would be worthless if its way of running tests failed without a mutation."""
    assert [name for name in ("dpo", "inpo", "lipo", "cpo") if fails_its_own_tests(name)] == []


# The baseline 1/2 of a policy gradient: any constant has the same expected gradient. Once in each of the two forms.
EXCUSED = {"nash_md": 2}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_no_flipped_sign_survives(name: str) -> None:
    """Flip every plus and minus of a loss, one at a time: its own tests or the declared solution must fail."""
    options = load_tests(name).OPTIONS
    survivors = []
    for line, mutant in mutants(name):
        if fails_its_own_tests(name):
            continue
        try:
            method = mutant.METHOD(**options)
        except UserError:
            continue
        if reaches_solution(name, method):
            survivors.append(line)
    assert len(survivors) <= EXCUSED.get(name, 0), f"lines {survivors} of {name}.py: their sign does not matter"
