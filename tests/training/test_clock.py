"""A limit in seconds under `wsd`: the clock decides the cooldown once, and all follow it."""

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import slm.training.loop
from slm.config import PipelineConfig, TrainConfig
from slm.errors import CorruptionError, Interrupted, NewerFormat
from slm.recipes import load_recipe, parse_overrides
from slm.records import Decision, JournalEntry, Plan, Shards
from slm.report.cards import commands
from slm.run_folder import DECISION, PLAN, RunFolder
from slm.source.download import download
from slm.storage import FORMAT
from slm.tokens.encode import encode
from slm.training import launch
from slm.training.clock import Countdown
from slm.training.loop import train
from slm.training.optim import learning_rate_factor, planned_factor
from slm.training.provenance import environment

Config = Callable[..., PipelineConfig]
Speed = Callable[[float], float]  # seconds of the training so far → seconds of the next step
LIMIT, TRAINED = 16.0, 10.0  # seconds of a countdown alone, and of a training


@dataclass
class Clock:
    """Seconds that pass in steps and evaluations alone, however long those really take."""

    speed: Speed
    scoring: float = 0.25
    passed: float = 0.0
    start: float = 1e6

    def __call__(self) -> float:
        return self.start + self.passed

    def step(self) -> None:
        self.passed += self.speed(self.passed)

    def evaluate(self) -> None:
        self.passed += self.scoring


def steady(seconds: float) -> float:
    return 0.125


def halves(seconds: float) -> float:
    """Half the speed from the middle of the limit on."""
    return 0.125 if seconds < TRAINED / 2 else 0.25


@pytest.fixture
def config(tiny_config: Config) -> PipelineConfig:
    return tiny_config(
        **{
            "data.documents": 60,
            "train.max_seconds": TRAINED,
            "train.schedule": "wsd",
            "train.final_lr": 0.0,
            "train.tokens_per_step": 64,
            "train.evaluate_every": 16,
            "train.evaluate_documents": 2,
            "train.checkpoint_every": 10,
            "train.threads": 1,
            "train.precision": "fp32",
            "train.device": "cpu",
        }
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clock")


@pytest.fixture
def shards(config: PipelineConfig, root: Path) -> Shards:
    environment()  # cached, so that no fork runs git
    torch.set_num_threads(1)
    return encode(config, download(config, root=root), root=root)


Timed = Callable[..., Clock]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Makes clocks that the steps and the evaluations of this process move on."""
    clocks: list[Clock] = []
    train_step = slm.training.loop.train_step
    evaluate_slice = slm.training.loop.evaluate_slice

    def step(*arguments: Any) -> Any:
        clocks[-1].step()
        return train_step(*arguments)

    def evaluate(*arguments: Any) -> Any:
        clocks[-1].evaluate()
        return evaluate_slice(*arguments)

    def make(speed: Speed, **fields: Any) -> Clock:
        clocks.append(Clock(speed, **fields))
        return clocks[-1]

    monkeypatch.setattr(slm.training.loop, "train_step", step)
    monkeypatch.setattr(slm.training.loop, "evaluate_slice", evaluate)
    return make


@pytest.fixture
def new_run(config: PipelineConfig, shards: Shards, tmp_path: Path) -> Callable[..., RunFolder]:
    """Makes run folders, each in a data folder of its own with the same shards."""

    def make(name: str = "data", **fields: object) -> RunFolder:
        data = tmp_path / name
        data.mkdir()
        (data / "shards").symlink_to(shards.path.parent)
        return launch.prepare(changed(config, **fields), shards, root=data)

    return make


def changed(config: PipelineConfig, **fields: object) -> PipelineConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=fields)})


def decision_of(run: RunFolder) -> Decision:
    decision = run.decision
    assert decision is not None
    return decision


# ---- the countdown ----------------------------------------------------------------------------


def end_of(
    speed: Speed, *, cooldown: float = 0.2, limit: float = LIMIT, scoring: float = 0.25
) -> tuple[float, Decision, int]:
    """When a training of that speed ends, what it decides, and the steps of the estimate."""
    first = speed(0.0)
    every = 16
    spent = 4 * first + scoring
    estimate = max(1, int((limit - spent) / (first + scoring / every)))
    plan = Plan(
        max_steps=estimate, rows=1, micro_batch_size=1, world_size=1, device="cpu",
        precision="fp32", threads=1, compile=False, cooldown_by_clock=True,
        probe={"step_seconds": first, "periodic_seconds": scoring / every, "probe_seconds": spent},
    )  # fmt: skip
    train = TrainConfig(
        max_seconds=limit, schedule="wsd", cooldown=cooldown, warmup=0.0, evaluate_every=every
    )
    clock = Clock(speed, scoring)
    clock.passed += spent
    countdown = Countdown(plan, train, clock)
    step, decision = 0, None
    while decision is None or step < decision.max_steps:
        decision = decision or countdown.decide(step)
        clock.step()
        step += 1
        events = ["step", "evaluate"] if step % every == 0 else ["step"]
        for event in events:
            if event == "evaluate":
                clock.evaluate()
            countdown.add(JournalEntry(event=event, time=0.0, step=step, seconds=countdown.now()))
    if step % every:
        clock.evaluate()
    return clock.passed, decision, estimate


@example(factor=2.25, at=0.59375, step=0.02, cooldown=0.3)
@settings(max_examples=40, deadline=None)
@given(
    factor=st.floats(0.25, 4), at=st.floats(0.05, 0.6), step=st.sampled_from([0.02, 0.125, 0.5]),
    cooldown=st.sampled_from([0.1, 0.2, 0.3]),
)  # fmt: skip
def test_a_speed_that_changes_before_the_cooldown_still_ends_within_5_percent(
    factor: float, at: float, step: float, cooldown: float
) -> None:
    limit = 300.0
    end, decision, _ = end_of(
        lambda now: step if now < at * limit else step * factor,
        cooldown=cooldown, limit=limit, scoring=0.5,
    )  # fmt: skip
    if decision.seconds > (at + 0.06) * limit:  # else it changes as the cooldown begins
        assert abs(end - limit) <= 0.05 * limit
    assert abs(end - limit) <= max(1.0, factor) * cooldown * limit


@given(cooldown=st.floats(0, 1), seconds=st.sampled_from([0.02, 0.125, 1.0, 7.0, 40.0]))
def test_at_a_steady_speed_the_cooldown_is_its_fraction_of_the_steps(
    cooldown: float, seconds: float
) -> None:
    end, decision, _ = end_of(lambda _: seconds, cooldown=cooldown)
    length = decision.max_steps - decision.cooldown_start
    assert length >= 1
    granularity = 2 + 0.25 / seconds  # steps in the time of an evaluation
    assert abs(length - cooldown * decision.max_steps) <= granularity or decision.max_steps <= 4
    assert end <= LIMIT + 0.5 or decision.max_steps <= 4


def test_a_single_stall_begins_no_cooldown() -> None:
    stalls = iter([4.0])
    end, decision, _ = end_of(lambda now: next(stalls, 0.125) if now > 5 else 0.125)
    assert abs(end - LIMIT) <= 0.05 * LIMIT
    assert decision.seconds > 10


def test_where_the_time_is_over_one_step_of_cooldown_remains() -> None:
    _, decision, _ = end_of(lambda now: 0.125 if now < 2 else 30.0)
    assert decision.max_steps == decision.cooldown_start + 1


def planned(max_steps: int, *, by_clock: bool) -> Plan:
    return Plan(
        max_steps=max_steps, rows=1, micro_batch_size=1, world_size=1, device="cpu",
        precision="fp32", threads=1, compile=False, cooldown_by_clock=by_clock,
    )  # fmt: skip


@given(
    estimate=st.integers(1, 300), start=st.integers(0, 300), cooldown=st.integers(1, 100),
    warmup=st.floats(0, 1), final=st.floats(0, 1),
)  # fmt: skip
def test_the_rate_never_jumps_and_falls_to_the_end(
    estimate: int, start: int, cooldown: int, warmup: float, final: float
) -> None:
    """Whether the cooldown begins after the warmup, or the machine is so slow that it is within."""
    config = TrainConfig(max_seconds=1, schedule="wsd", warmup=warmup, final_lr=final)
    decision = Decision(
        cooldown_start=start, max_steps=start + cooldown, seconds=1.0, step_seconds=1.0
    )
    plan = planned(estimate, by_clock=True)
    before = [planned_factor(step, plan, None, config) for step in range(start)]
    rates = [planned_factor(step, plan, decision, config) for step in range(start + cooldown)]
    assert rates[:start] == before
    assert all(0 <= rate <= 1 for rate in rates)
    up = 1 / max(1, math.ceil(warmup * estimate))
    steps = [after - before for before, after in pairwise(rates)]
    assert max(steps, default=0.0) <= up + 1e-9
    assert min(steps, default=0.0) >= -1 / cooldown - 1e-9
    peak = rates.index(max(rates))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@given(last=st.integers(1, 200), warmup=st.floats(0, 0.5), cooldown=st.floats(0, 0.5))
def test_a_decision_gives_the_rates_of_a_plan_of_the_same_steps(
    last: int, warmup: float, cooldown: float
) -> None:
    config = TrainConfig(max_steps=last, schedule="wsd", warmup=warmup, cooldown=cooldown)
    if math.ceil(warmup * last) + max(1, round(cooldown * last)) > last:
        return
    length = max(1, round(cooldown * last))
    decision = Decision(cooldown_start=last - length, max_steps=last, seconds=1.0, step_seconds=1.0)
    plan = planned(last, by_clock=True)
    for step in range(last):
        factor = planned_factor(step, plan, decision, config)
        assert factor.hex() == learning_rate_factor(step, last, config).hex()


# ---- training ---------------------------------------------------------------------------------


def test_a_training_whose_speed_halves_ends_within_the_limit(
    new_run: Callable[..., RunFolder], timed: Timed
) -> None:
    clock = timed(halves)
    run = new_run()
    record = train(run, clock=clock)
    assert record is not None
    plan, decision = run.plan, decision_of(run)
    assert plan is not None
    assert plan.cooldown_by_clock
    assert plan.max_steps > 1.2 * record.step  # what the probe expected
    # all of val is scored after the last step, by whatever limit
    assert abs(clock.passed - clock.scoring - TRAINED) <= 0.05 * TRAINED
    assert record.step == decision.max_steps == run.max_steps
    assert json.loads((run.path / DECISION).read_text())["format"] == FORMAT
    assert DECISION in record.files
    events = [entry for entry in run.journal if entry["event"] == "decision"]
    assert [(e["step"], e["max_steps"]) for e in events] == [
        (decision.cooldown_start, decision.max_steps)
    ]
    rates = [entry["lr"] for entry in run.journal if entry["event"] == "step"]
    peak = run.config.train.learning_rate
    assert rates[decision.cooldown_start] == peak
    assert rates[decision.cooldown_start + 1] < peak
    assert rates[-1] == pytest.approx(peak / (decision.max_steps - decision.cooldown_start))


def test_compiling_takes_nothing_of_the_limit_and_changes_no_bits(
    new_run: Callable[..., RunFolder], timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that takes ten times the limit, in the probe and in the training."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda model: model)
        patch.setattr(slm.training.loop, "compile_ahead", lambda session: None)
        plain = train(new_run("at once", compile=True), clock=timed(steady))
    clock = timed(steady)

    def compile_slowly(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        left = [10 * LIMIT]

        def forward(x: torch.Tensor) -> torch.Tensor:
            clock.passed += left.pop() if left else 0.0
            return model(x)  # type: ignore[no-any-return]

        return forward

    monkeypatch.setattr(torch, "compile", compile_slowly)
    run = new_run("compiled", compile=True)
    record = train(run, clock=clock)
    assert plain is not None
    assert record is not None
    assert run.plan is not None
    assert run.plan.compile
    assert clock.passed > 20 * LIMIT
    assert (record.step, record.weights_sha256) == (plain.step, plain.weights_sha256)


def test_checkpoints_carry_the_decision_from_the_cooldown_on(
    new_run: Callable[..., RunFolder], timed: Timed
) -> None:
    run = new_run(keep_checkpoints=100, checkpoint_every=1, max_seconds=5.0)
    train(run, clock=timed(steady))
    start = decision_of(run).cooldown_start
    hashes = {}
    for _, folder in run.checkpoints:
        saved = run.checkpoint(folder.name)
        assert saved is not None
        hashes[saved.step] = saved.decision_sha256
    assert {step for step, digest in hashes.items() if digest} == set(
        range(start + 1, decision_of(run).max_steps + 1)
    )
    assert len(set(hashes.values())) == 2


def test_the_command_of_the_report_gives_the_same_weights(
    new_run: Callable[..., RunFolder], timed: Timed, project: Path
) -> None:
    run = new_run()
    record = train(run, clock=timed(halves))
    assert record is not None
    _, rerun, *_ = commands(run.config.model_copy(update={"recipe": "tiny"}), record)
    _, _, recipe, *rest = shlex.split(rerun)
    again = load_recipe(recipe, parse_overrides(rest[1::2]))
    assert again.train.max_seconds is None
    shards = run.shards
    assert shards is not None
    same = train(launch.prepare(again, shards, root=run.root.path))
    assert same is not None
    assert (same.step, same.weights_sha256) == (record.step, record.weights_sha256)


def test_stopped_and_resumed_it_neither_gains_nor_loses_time(
    new_run: Callable[..., RunFolder], timed: Timed
) -> None:
    """The second process has another clock, and minutes pass between the two."""
    whole = new_run("whole")
    train(whole, clock=timed(halves))
    run = new_run("stopped")
    clock = timed(halves)
    for stop in (3, 16, 30):
        with pytest.raises(Interrupted):
            train(run, clock=clock, should_stop=lambda stop=stop: steps_of(run) >= stop)  # type: ignore[misc]
        clock = timed(halves, passed=clock.passed, start=clock.start - 1000.0)
    train(run, clock=clock)
    assert decision_of(run) == decision_of(whole)
    assert faults.bits(run) == faults.bits(whole)


def steps_of(run: RunFolder) -> int:
    return sum(entry["event"] == "step" for entry in run.journal)


def test_what_was_decided_is_followed_whatever_the_clock_shows(
    new_run: Callable[..., RunFolder], timed: Timed
) -> None:
    whole = new_run("whole")
    train(whole, clock=timed(steady))
    start = decision_of(whole).cooldown_start
    run = new_run("killed")
    with pytest.raises(Interrupted):
        train(run, clock=timed(steady), should_stop=lambda: steps_of(run) > start)
    assert decision_of(run) == decision_of(whole)
    before = (run.path / PLAN).read_bytes(), (run.path / DECISION).read_bytes()
    train(run, clock=timed(lambda _: 100.0))
    assert ((run.path / PLAN).read_bytes(), (run.path / DECISION).read_bytes()) == before
    assert faults.bits(run) == faults.bits(whole)


def test_a_slower_machine_after_a_stop_decides_another_end(
    new_run: Callable[..., RunFolder], timed: Timed
) -> None:
    """Before the decision a run's bits are those of its key up to there, and no further."""
    whole = new_run("whole")
    train(whole, clock=timed(steady))
    run = new_run("moved")
    with pytest.raises(Interrupted):
        train(run, clock=timed(steady), should_stop=lambda: steps_of(run) >= 10)
    record = train(run, clock=timed(lambda _: 0.5))
    assert record is not None
    assert record.step == decision_of(run).max_steps < decision_of(whole).max_steps
    start = decision_of(run).cooldown_start
    assert faults.bits(run).losses[:start] == faults.bits(whole).losses[:start]


@pytest.mark.parametrize("edit", ["changed", "removed", "earlier"])
def test_a_decision_edited_after_the_stop_is_refused(
    new_run: Callable[..., RunFolder], timed: Timed, edit: str
) -> None:
    run = new_run()
    with pytest.raises(Interrupted):
        train(run, clock=timed(steady), should_stop=lambda: run.decision is not None)
    decision = decision_of(run)
    if edit == "removed":
        (run.path / DECISION).unlink()
    elif edit == "changed":
        run.write_decision(decision.model_copy(update={"max_steps": decision.max_steps + 1}))
    else:
        run.write_decision(decision.model_copy(update={"cooldown_start": 1}))
    with pytest.raises(CorruptionError, match=r"decision\.json is not the decision .* step_0"):
        train(run, clock=timed(steady))


def test_a_decision_of_a_newer_format_is_not_touched(
    new_run: Callable[..., RunFolder], timed: Timed
) -> None:
    run = new_run()
    train(run, clock=timed(steady))
    fields = json.loads((run.path / DECISION).read_text()) | {"format": FORMAT + 1}
    (run.path / DECISION).write_text(json.dumps(fields))
    with pytest.raises(NewerFormat, match=DECISION):
        _ = run.verified_record


def test_a_run_that_was_planned_whole_keeps_its_plan(
    new_run: Callable[..., RunFolder], timed: Timed
) -> None:
    """As all were before the clock decided anything: the plan has no field for it."""
    run = new_run()
    plan = planned(12, by_clock=False).model_copy(update={"rows": 2})
    fields = plan.model_dump(mode="json", exclude={"cooldown_by_clock"})
    (run.path / PLAN).write_text(json.dumps({"format": 3, **fields}))
    record = train(run, clock=timed(steady))
    assert record is not None
    assert record.step == 12
    assert run.decision is None
    assert not any("seconds" in entry for entry in run.journal)
    config = run.config.train
    rates = [entry["lr"] for entry in run.journal if entry["event"] == "step"]
    assert rates == [
        config.learning_rate * learning_rate_factor(step, 12, config) for step in range(12)
    ]


def test_only_wsd_waits_for_the_clock(new_run: Callable[..., RunFolder], timed: Timed) -> None:
    run = new_run(schedule="linear", max_seconds=3.0)
    record = train(run, clock=timed(halves))
    plan = run.plan
    assert record is not None
    assert plan is not None
    assert (plan.cooldown_by_clock, plan.max_steps, run.decision) == (False, record.step, None)


# ---- killed -----------------------------------------------------------------------------------


def train_in_fork(run: RunFolder, clock: Clock, fault: str = "") -> int:
    log = run.path / "train.log"
    return faults.wait(faults.fork(lambda: train(run, clock=clock), fault=fault, log=log))


@pytest.mark.parametrize("place", ["train.decide:1", "train.step:{}"])
def test_killed_before_or_after_the_decision_it_gives_the_same_bits(
    new_run: Callable[..., RunFolder], timed: Timed, place: str
) -> None:
    """Every fault point of such a training is in test_faults.py."""
    whole = new_run("whole")
    train(whole, clock=timed(steady))
    run = new_run("killed")
    in_cooldown = decision_of(whole).cooldown_start + 4 + 3  # the probe makes steps too
    killed = f"{place.format(in_cooldown)}:kill"
    assert train_in_fork(run, timed(steady), killed) == faults.KILLED
    assert (run.decision is not None) == place.startswith("train.step")
    assert train_in_fork(run, timed(steady)) == 0
    assert decision_of(run) == decision_of(whole)
    assert faults.bits(run) == faults.bits(whole)
