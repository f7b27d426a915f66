"""Checkpoints of a run under way: an interrupted run goes on where it stopped and ends with the same weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Keep the newest state of one run in an Orbax folder; a save cut in half is never believed.

    Attributes:
        folder: Where to; one folder a run.
        interval: Steps between saves, a multiple of the hundred between two records of the loss.
    """

    folder: Path
    interval: int = 1000

    def save(self, identity: Any, state: Any, record: dict[str, Any]) -> None:
        """Save a state and the record so far, if the interval says so; `identity` (frozen data) tells which run."""
        if (step := record["steps"][-1]) % self.interval:
            return
        import orbax.checkpoint as ocp  # takes seconds to load

        run = ocp.args.JsonSave({"identity": asdict(identity), "record": record})
        with self._manager() as manager:
            state_args = ocp.args.StandardSave(jax.tree.leaves(state))
            manager.save(step, args=ocp.args.Composite(state=state_args, run=run), force=True)

    def restore(self, identity: Any, state: Any) -> tuple[Any, dict[str, Any]] | None:
        """Return the newest state, shaped as `state`, and its record; None where nothing was saved.

        Raises:
            ValueError: If the folder holds another run.
        """
        if not self.folder.is_dir():
            return None
        import orbax.checkpoint as ocp

        with self._manager() as manager:
            if (step := manager.latest_step()) is None:
                return None
            run = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
            wanted = json.loads(json.dumps(asdict(identity)))  # tuples become lists, as in the file
            if run["identity"] != wanted:
                raise ValueError(
                    f"the checkpoints in {self.folder} are of another run: wanted {wanted}, got {run['identity']}. "
                    "Use another folder, or delete this one."
                )
            leaves, structure = jax.tree.flatten(state)
            abstract = ocp.args.StandardRestore([ocp.utils.to_shape_dtype_struct(leaf) for leaf in leaves])
            saved = manager.restore(step, args=ocp.args.Composite(state=abstract))["state"]
        return jax.tree.unflatten(structure, saved), run["record"]

    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self.folder.absolute(), options=options)
