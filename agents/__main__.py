"""`python -m agents COMMAND`: who drives, and how well.

A command is a module with a config dataclass and `run(config)`; only the one asked for is imported.
Results go to stdout, progress and errors to stderr.
"""

import importlib
import inspect
import sys
from collections.abc import Sequence

import tyro

# Where each command's config class and `run` live, and what the overview says of it.
COMMANDS = {
    "demo": ("agents.demo", "DemoConfig", "the shipped controller, dreaming and for real"),
    "evaluate": ("agents.evaluate", "EvaluateConfig", "mean return on real tracks, or in dreams"),
    "evolve": ("agents.evolve", "EvolveConfig", "learn to drive in the dream, with CMA-ES"),
    "analytic": ("agents.analytic", "AnalyticConfig", "the same, by the gradient of the dream"),
    "caution": ("agents.caution", "CautionConfig", "learn in dreams where to brake"),
    "record": (
        "agents.record",
        "RecordConfig",
        "film real episodes, and what the dream got wrong",
    ),
    "drive": ("agents.drive", "DriveConfig", "drive it yourself, with the arrow keys"),
}

_PROGRAM = "python -m agents"


def overview() -> str:
    """What the commands are."""
    lines = [f"usage: {_PROGRAM} COMMAND [options]", ""]
    lines += [f"  {name:<10} {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join([*lines, "", f"`{_PROGRAM} COMMAND --help` tells a command's options."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 only when its work was done."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *options = arguments
    if name not in COMMANDS:
        print(f"error: no command {name!r}\n{overview()}", file=sys.stderr)
        return 2
    home, config_name, _ = COMMANDS[name]
    try:
        if name == "evolve":  # before the next import, which computes
            from wm_env.cores import make_cores_devices

            make_cores_devices()
        module = importlib.import_module(home)
        config_type = getattr(module, config_name)
        prog, about = f"{_PROGRAM} {name}", inspect.getdoc(config_type)
        config = tyro.cli(config_type, prog=prog, description=about, args=options)
        module.run(config)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
