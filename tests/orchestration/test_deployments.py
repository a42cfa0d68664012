"""`pipelines.yaml` is read strictly, as Prefect ignores what it does not know."""

from pathlib import Path

import pytest
from prefect.flows import load_flow_from_entrypoint

import slm
from slm.errors import UserError
from slm.orchestration.stack.deployments import check

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = """
definitions:
  pool: &pool {name: slm-process}
deployments:
  - name: tiny
    entrypoint: flows/pipeline.py:pipeline
    description: A tiny one.
    version: "1"
    tags: [slm]
    parameters: {recipe: tiny, overrides: {train.max_steps: 3}}
    work_pool: *pool
    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}
    schedules:
      - {cron: "0 3 * * 0", timezone: Europe/Berlin, slug: weekly, active: false}
"""


@pytest.fixture
def file(project: Path) -> Path:
    """A good file, next to the real flows."""
    (project / "flows").symlink_to(ROOT / "flows")
    path = project / "pipelines.yaml"
    path.write_text(path.read_text().replace("deployments: []\n", DEPLOYMENTS))
    return path


def test_the_projects_own_file_is_in_order() -> None:
    deployments = check(ROOT / "pipelines.yaml")
    stages = ("download", "encode", "train", "evaluate", "report", "register")
    assert set(deployments) == {
        "pipeline/quickstart",
        "pipeline/tinystories",
        "pipeline/tinystories-gpt2",
        "pipeline/trial",
        "retrain/tinystories",
        "sweep/rates",
        *(f"pipeline/tinystories-{stage}" for stage in stages),
    }
    for stage in stages:
        assert deployments[f"pipeline/tinystories-{stage}"].parameters["until"] == stage
    assert all(deployment.concurrency_limit for deployment in deployments.values())


def test_a_good_file_passes(file: Path) -> None:
    assert list(check(file)) == ["pipeline/tiny"]


def test_a_sweep_is_deployed_whether_it_is_listed_or_not(file: Path) -> None:
    sweeps = "sweeps:\n  rates: {recipe: tiny, space: {train.learning_rate: [0.001, 0.002]}}\n"
    file.write_text(file.read_text() + sweeps)
    made = check(file)
    assert list(made) == ["pipeline/tiny", "sweep/rates"]
    assert made["sweep/rates"].parameters == {"sweep": "rates"}
    assert made["sweep/rates"].work_pool == made["pipeline/tiny"].work_pool
    listed = (
        "  - {name: rates, entrypoint: slm.orchestration.sweep.sweep, description: Rates,\n"
        '     version: "2", parameters: {sweep: rates, workers: 4}, work_pool: {name: other}}\n'
    )
    file.write_text(file.read_text().replace(sweeps, listed + sweeps))
    assert check(file)["sweep/rates"].parameters == {"sweep": "rates", "workers": 4}
    file.write_text(file.read_text().replace("sweep: rates, workers", "sweep: rate, workers"))
    with pytest.raises(UserError, match="did you mean 'rates'"):
        check(file)


def test_a_flow_may_be_named_by_its_module(file: Path) -> None:
    module = "slm.orchestration.pipeline.pipeline"
    file.write_text(file.read_text().replace("flows/pipeline.py:pipeline", module))
    assert list(check(file)) == ["pipeline/tiny"]
    file.write_text(file.read_text().replace(module, "slm.orchestration.pipelin.pipeline"))
    with pytest.raises(UserError, match=r"No module named 'slm\.orchestration\.pipelin'"):
        check(file)


def test_a_file_without_recipes_deploys_shipped_ones(project: Path) -> None:
    path = project / "pipelines.yaml"
    module = "slm.orchestration.pipeline.pipeline"
    own = DEPLOYMENTS.replace("flows/pipeline.py:pipeline", module)
    path.write_text("name: tiny\n" + own.replace("recipe: tiny", "recipe: quickstart"))
    assert list(check(path)) == ["pipeline/tiny"]


@pytest.mark.parametrize(
    ("entrypoint", "message"),
    [
        ("pipeline", "name a flow by its module or by its file, such as slm.orchestration"),
        ("slm.orchestration.pipeline", "not found|is not a flow"),
        ("slm.orchestration.pipeline.Overrides", "is not a flow"),
    ],
)
def test_a_module_that_names_no_flow(file: Path, entrypoint: str, message: str) -> None:
    file.write_text(file.read_text().replace("flows/pipeline.py:pipeline", entrypoint))
    with pytest.raises(UserError, match=message):
        check(file)


def test_a_file_needs_no_name_of_prefects(file: Path) -> None:
    file.write_text(file.read_text().replace("name: tiny\n", "", 1))
    assert list(check(file)) == ["pipeline/tiny"]


def test_what_init_writes_is_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    slm.init(".", name="true")
    deployments = check(tmp_path / "own" / "pipelines.yaml")
    assert list(deployments) == ["pipeline/true", "retrain/true"]
    assert deployments["retrain/true"].schedules
    assert not (tmp_path / "own" / "flows").exists()


def test_prefect_loads_the_flows_by_their_files() -> None:
    for name in ("pipeline", "retrain"):
        flow = load_flow_from_entrypoint(f"{ROOT}/flows/{name}.py:{name}")
        assert flow.name == name
        assert flow.description


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("concurrency_limit:", "concurency_limt:", "deployments[0]: unknown key 'concurency_limt'"),
        ("concurrency_limit:", "concurency_limt:", "did you mean 'concurrency_limit'?"),
        ("limit: 1", "limits: 1", "concurrency_limit: unknown key 'limits'"),
        ("slug: weekly", "slugg: weekly", "deployments[0].schedules[0]: unknown key 'slugg'"),
        ("name: slm-process", "nam: slm-process", "did you mean 'name'?"),
        ("definitions:", "definition:", "at the top: unknown key 'definition'"),
        ("recipe: tiny", "recipe: tini", "unknown recipe 'tini': did you mean 'tiny'?"),
        ("recipe: tiny", "recip: tiny", "unknown parameter 'recip': did you mean 'recipe'?"),
        ("train.max_steps", "train.max_step", "did you mean 'train.max_steps'?"),
        ("py:pipeline", "py:pipelin", "Flow function with name 'pipelin' not found"),
        ("recipe: tiny,", "recipe: tiny, until: encod,", "until: give 'download',"),
        ("flows/pipeline.py", "flows/pipelin.py", "flows/pipelin.py does not exist"),
        ('version: "1"', "version: 1", "deployments[0].version=1"),
        ("    description: A tiny one.\n", "", "deployments[0].description is missing"),
        ('cron: "0 3 * * 0", ', "", "Exactly one of 'cron', 'interval', or 'rrule'"),
        ("ENQUEUE", "ENQUE", "collision_strategy='ENQUE'"),
        ("overrides: {train.max_steps: 3}", "overrides: [3]", "it must map dotted keys to values"),
        ("n_layer: 1", "n_layr: 1", "did you mean 'model.n_layer'?"),
    ],
)
def test_what_is_wrong_is_named(file: Path, good: str, bad: str, message: str) -> None:
    text = file.read_text()
    assert good in text
    file.write_text(text.replace(good, bad))
    with pytest.raises(UserError) as error:
        check(file)
    assert message in str(error.value)


def test_two_deployments_of_one_name(file: Path) -> None:
    entry = file.read_text().split("deployments:\n")[1]
    file.write_text(file.read_text() + entry)
    with pytest.raises(UserError, match="'pipeline/tiny' is defined twice"):
        check(file)


def test_a_recipe_may_leave_its_path_to_the_command_line(file: Path) -> None:
    later = "  own: {data: {source: files}, train: {max_steps: 1}}\n"
    file.write_text(file.read_text().replace("  tiny:\n", f"{later}  tiny:\n"))
    assert check(file)
