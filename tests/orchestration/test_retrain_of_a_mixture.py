"""The scheduled flow on a mixture of which one source has new documents."""

from pathlib import Path
from typing import Any

import pytest
import tiny_run
import yaml
from mixtures import text, write, write_sources
from prefect.client.orchestration import SyncPrefectClient

import slm
from slm.orchestration import retrain
from slm.run_folder import DataRoot

OVERRIDES = {
    "registry.max_bpb": 100, "registry.beat_baselines": False, "registry.max_degenerate": 1,
    "registry.max_memorised": 1, "retrain.drift_threshold": 1.0, "retrain.bpb_rise": 9.0,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_only_the_source_that_changed_is_encoded_again(
    client: SyncPrefectClient, project: Path, data_root: Path
) -> None:
    paths = write_sources(project / "in")
    for name, path in paths.items():  # the gate needs 20 of them
        write(path / "validation.jsonl", [text(f"{name} val", i) for i in range(20)])
    sources = {name: {"source": "files", "path": str(path)} for name, path in paths.items()}
    tiny = yaml.safe_load((project / "pipelines.yaml").read_text())["recipes"]["tiny"]
    tiny |= {"data": {"vocab_size": 300, "sources": sources}}
    tiny["model"]["seq_len"] = 16
    tiny["train"] |= {"max_steps": 12, "threads": 1}
    tiny["report"]["prompts"] = ["a"]
    (project / "pipelines.yaml").write_text(yaml.safe_dump({"recipes": {"mixed": tiny}}))

    def cycle() -> dict[str, Any]:
        state = retrain.retrain("mixed", OVERRIDES, return_state=True)
        assert state.is_completed(), state.message
        result: dict[str, Any] = state.result()
        return result

    with tiny_run.code(tiny_run.CLEAN):
        first = cycle()
        assert (first["action"], first["champion"]) == ("retrain", True)
        assert cycle()["action"] == "nothing"
        write(paths["b"] / "more.jsonl", [text("new b", i) for i in range(30)])
        second = cycle()
    assert second["action"] == "continue"
    changes = {name: each["changes"] for name, each in second["evidence"]["sources"].items()}
    assert (changes["a"]["new"], changes["b"]["new"]) == (0, 30)
    assert "of the source b" in second["reason"] or "of the documents are new" in second["reason"]
    runs = sorted(DataRoot().runs(), key=lambda run: run.started or 0)
    before, after = (run.shards for run in runs)
    assert before is not None
    assert after is not None
    assert after.tokenizer_sha256 == before.tokenizer_sha256
    assert after.parts["a"].key == before.parts["a"].key
    assert after.parts["b"].key != before.parts["b"].key
    folders = DataRoot().results("shards")
    assert len(folders) == 5  # of a one, of b two, two mixtures
    assert runs[1].parent_record is not None
    assert slm.open_run(runs[1].name).is_finished
