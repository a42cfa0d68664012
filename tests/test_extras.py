"""Dependencies: what is imported is declared, and what is optional names its extra."""

import ast
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import slm
from slm.cli.stages import encode as encode_command
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.extras import DISTRIBUTION, EXTRAS, is_installed, require
from slm.source.download import download
from slm.tokens.encode import encode
from slm.training.preflight import check_before_download

PROJECT = tomllib.loads((Path(slm.__file__).parents[1] / "pyproject.toml").read_text())["project"]
BROUGHT = {  # module → the dependency that has it as its own, and whose objects it is used on
    "httpx": "prefect", "httpx2": "huggingface-hub", "markupsafe": "jinja2", "pandas": "mlflow",
    "pydantic_core": "pydantic", "regex": "tiktoken",
}  # fmt: skip
Config = Callable[..., PipelineConfig]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


def imported() -> Iterator[tuple[str, str]]:
    """Every module outside the standard library that slm imports, and a file that does."""
    for path in Path(slm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                modules = [node.module]
            for module in modules:
                top = module.partition(".")[0]
                if top != "slm" and top not in sys.stdlib_module_names:
                    yield top, path.name


def test_what_is_imported_is_declared_in_the_core_or_in_an_extra() -> None:
    owners, core = packages_distributions(), names(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    for module, file in imported():
        if module in EXTRAS and not is_installed(module):  # ray, which is not among dev's
            continue
        given = {canonicalize_name(name) for name in owners[module]}
        declared = names(extras[EXTRAS[module]]) if module in EXTRAS else core
        if module in BROUGHT:
            assert BROUGHT[module] in core
            declared = names(requires(BROUGHT[module]) or [])
        assert given & declared, f"{file} imports {module}"
    assert not core & names([*extras["clean"], *extras["grammar"]])
    assert PROJECT["name"] == DISTRIBUTION
    assert set(EXTRAS.values()) == set(extras) - {"dev", "docs"}


def test_the_exact_set_is_within_the_ranges() -> None:
    lines = (Path(slm.__file__).parents[1] / "constraints.txt").read_text().splitlines()
    exact = {
        canonicalize_name(name): version
        for name, equals, version in (line.partition("==") for line in lines)
        if equals
    }
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(each) for group in groups for each in group):
        if (name := canonicalize_name(requirement.name)) != DISTRIBUTION:
            assert requirement.specifier.contains(exact[name]), requirement


# ---- without an extra -------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a module look as if it were not installed."""
    return lambda module: monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("module", EXTRAS)
def test_a_feature_without_its_extra_names_it(module: str, without: Callable[[str], None]) -> None:
    if is_installed(module):
        require(module, "it")
    without(module)
    assert not is_installed(module)
    with pytest.raises(UserError, match=rf"^it needs {module}.*slm-pipeline\[{EXTRAS[module]}\]"):
        require(module, "it")


@pytest.mark.parametrize(
    ("module", "setting", "value"),
    [
        ("ftfy", "data.clean.fix_text", True),
        ("datasketch", "data.clean.near_duplicates", 0.8),
    ],
)
def test_cleaning_without_its_extra_is_refused_before_any_work(
    module: str,
    setting: str,
    value: Any,
    without: Callable[[str], None],
    tiny_config: Config,
    data_root: Path,
) -> None:
    config = tiny_config(**{setting: value})
    source = download(config)
    without(module)
    for call in (check_before_download, lambda config: encode(config, source)):
        with pytest.raises(UserError, match=rf"{setting}=.*slm-pipeline\[clean\]"):
            call(config)
    assert [path for path in data_root.glob("shards/*") if path.suffix != ".lock"] == []
    check_before_download(tiny_config())  # who asks for neither needs neither


@pytest.mark.parametrize(
    ("module", "setting", "value"),
    [
        ("ftfy", "data.clean.fix_text", True),
        ("prefect_dask", "data.runner", "dask"),
        ("prefect_ray", "data.runner", "ray"),
    ],
)
def test_encoding_without_its_extra_is_refused_before_the_download(
    module: str,
    setting: str,
    value: Any,
    without: Callable[[str], None],
    project: Path,
    data_root: Path,
) -> None:
    without(module)
    settings = {setting: value}
    for call in (
        lambda: slm.run("tiny", settings, until="encode"),
        lambda: slm.run("tiny", settings, until="train"),
        lambda: encode_command("tiny", [f"{setting}={value}"]),
    ):
        with pytest.raises(UserError, match=rf"{setting}=.*slm-pipeline\[{EXTRAS[module]}\]") as e:
            call()
        assert e.value.exit_code == 2
    assert list(data_root.glob("sources/*")) == []


def test_shards_that_are_complete_need_no_extra(
    without: Callable[[str], None], tiny_config: Config, data_root: Path
) -> None:
    config = tiny_config(**{"data.clean.near_duplicates": 0.8})
    source = download(config)
    shards = encode(config, source)
    without("datasketch")
    check_before_download(config)
    assert encode(config, source).key == shards.key
