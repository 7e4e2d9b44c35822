"""Pictures that say whether a fit of V or M worked."""

from training.pictures.calibration import calibration_curves
from training.pictures.dreams import open_loop_dreams
from training.pictures.held_out import Drive, held_out_drives, held_out_episodes
from training.pictures.memory import debug_grid, memory_pictures
from training.pictures.tiles import tiles_along
from training.pictures.vision import reconstructions, traversals, vision_pictures

__all__ = [
    "Drive",
    "calibration_curves",
    "debug_grid",
    "held_out_drives",
    "held_out_episodes",
    "memory_pictures",
    "open_loop_dreams",
    "reconstructions",
    "tiles_along",
    "traversals",
    "vision_pictures",
]
