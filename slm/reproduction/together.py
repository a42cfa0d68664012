"""A replay by as many processes as trained the run: `python -m slm.reproduction.together …`.

The sums of `ddp` and `fsdp` follow their number, so no other number repeats them.
"""

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from slm.errors import TrainingError, UserError
from slm.reproduction.comparing import TensorDifference
from slm.reproduction.replay import Replay, replay, stretch_of
from slm.run_folder import RunFolder
from slm.training.child import environment, under_torchrun
from slm.training.distributed import wait_for_rank0
from slm.training.log import final_message
from slm.training.processes import gpu_count


def replay_together(run: RunFolder, start: int, stop: int, count: int) -> Replay:
    """`replay` in `count` processes of this machine."""
    plan = run.plan
    if plan and plan.device == "cuda" and gpu_count() < count:
        raise UserError(
            f"{run.name} was trained by {count} GPUs under train.parallel={plan.parallel}, whose "
            f"sums fewer do not repeat; {gpu_count()} are here"
        )
    with TemporaryDirectory() as folder:
        log, result = Path(folder) / "log", Path(folder) / "result.json"
        module = [__name__, str(run.path), str(start), str(stop), str(result)]
        with log.open("ab") as output:
            ended = subprocess.run(
                under_torchrun(module, count),
                env=environment(run.config, count, None),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        if ended.returncode or not result.is_file():
            raise TrainingError(f"{count} processes did not repeat it: {final_message(log, 0)}")
        fields = json.loads(result.read_text())
    losses, tensor = fields.pop("losses"), fields.pop("tensor")
    return Replay(
        **fields,
        losses=tuple(losses) if losses else None,
        tensor=TensorDifference(**tensor) if tensor else None,
    )


def main(folder: str, start: str, stop: str, result: str) -> None:
    """One of the processes; the first one writes what they measured."""
    run = RunFolder(Path(folder))
    measured = replay(run, stretch_of(run, int(start), int(stop)))
    if os.environ["RANK"] == "0":
        Path(result).write_text(json.dumps(asdict(measured)))
    wait_for_rank0()


if __name__ == "__main__":
    main(*sys.argv[1:])
    logging.shutdown()
    os._exit(0)  # another process may still be in the last exchange
