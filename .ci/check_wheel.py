"""Check what a wheel holds: `python check_wheel.py FILE`."""

import sys
import zipfile
from pathlib import Path

PACKAGES = {"wm_env", "registrations"}
WORLDS = "carracing", "carracing_motion", "carracing_beginner"
SHIPPED = *WORLDS, "carracing_controller", "carracing_motion_controller"
ASSETS = {f"wm_env/assets/{name}.safetensors" for name in SHIPPED}
SIZE_LIMIT = 15_000_000


def main(path: Path) -> str | None:
    """What is wrong with the wheel, or None."""
    size = path.stat().st_size
    names = set(zipfile.ZipFile(path).namelist())
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    print(f"{path.name}: {size:,} bytes, {len(names)} files, packages {sorted(packages)}")
    if packages != PACKAGES:
        return f"the wheel holds {sorted(packages)}; expected {sorted(PACKAGES)} only"
    if not names >= ASSETS:
        return f"the wheel lacks {sorted(ASSETS - names)}"
    if size > SIZE_LIMIT:
        return f"the wheel has {size:,} bytes; expected at most {SIZE_LIMIT:,}"
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
