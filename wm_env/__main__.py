"""`python -m wm_env info | bench | fidelity | play`: results on stdout, the rest on stderr."""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from wm_env import bench, machine, play
from wm_env.fidelity import report as fidelity

Command = (
    Annotated[machine.InfoConfig, tyro.conf.subcommand("info")]
    | Annotated[bench.BenchConfig, tyro.conf.subcommand("bench")]
    | Annotated[fidelity.FidelityConfig, tyro.conf.subcommand("fidelity")]
    | Annotated[play.PlayConfig, tyro.conf.subcommand("play")]
)

_RUN = {
    machine.InfoConfig: machine.run,
    bench.BenchConfig: bench.run,
    fidelity.FidelityConfig: fidelity.run,
    play.PlayConfig: play.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 only when its work was done."""
    config = tyro.cli(Command, prog="python -m wm_env", args=arguments)  # pyright: ignore
    try:
        _RUN[type(config)](config)
    except (ValueError, OSError, RuntimeError) as error:  # all of ours are among these
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
