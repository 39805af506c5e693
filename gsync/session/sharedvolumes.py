"""Volumes that several nodes see: the meta volume keeps their one identity in `volumes/<name>/volume.json`.

So every node gives the same inodes the same gfids, and a slave recognizes the volume whichever node replicates it.
Without a meta volume in the node's settings, everything here is as in state.home.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

from gsync.base.durable import fsync_dir, make_dirs, replace_file
from gsync.base.errors import UsageError
from gsync.session import config
from gsync.session.metavolume import MetaVolume
from gsync.state.home import Home, Volume, same_tree

_FORMAT = 1


def add_volume(home: Home, name: str, path: str) -> Volume:
    """Make the directory `path` a volume; on a second node, the volume of that name that it is."""
    return keep_volume(home, new_volume(home, name, path))


def new_volume(home: Home, name: str, path: str) -> Volume:
    """The volume that the directory `path` would be. Nothing is written. UsageError if other nodes know another tree by
    that name."""
    volume = home.new(name, path)
    meta = site_meta_volume(home)
    return volume if meta is None else _as_known(meta, volume)


def keep_volume(home: Home, volume: Volume) -> Volume:
    """Register the result of `new_volume`, here and for the other nodes, durably."""
    meta = site_meta_volume(home)
    if meta is not None and volume.gluster is None:  # GlusterFS tells all nodes the same
        share_volume(meta, volume)
    return home.keep(volume)


def share_volume(meta: MetaVolume, volume: Volume) -> None:
    """Tell the other nodes the volume's identity. UsageError if they know another one by that name."""
    known = _as_known(meta, volume)
    if known.uuid != volume.uuid:
        raise UsageError(f"volume {volume.name}: other nodes added the same tree independently; remove the volume here "
                         "and add it again to give it the same identity")
    path = _path(meta, volume)
    if os.path.exists(path):
        return
    folder = os.path.dirname(path)
    values = {"format": _FORMAT, "name": volume.name, "uuid": volume.uuid, "tag": volume.tag.hex(),
              "root": volume.root.hex(), "file_system": dict(volume.file_system)}
    try:
        make_dirs(folder)
        new = f"{path}.{volume.uuid}"
        replace_file(new, json.dumps(values, indent=1).encode("ascii") + b"\n")
        with suppress(FileExistsError):  # another node was faster, with what is told below
            os.link(new, path)
        os.unlink(new)
        fsync_dir(folder)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from exc
    if _as_known(meta, volume).uuid != volume.uuid:
        raise UsageError(f"volume {volume.name}: another node is adding it at the same time; try again")


def site_meta_volume(home: Home) -> MetaVolume | None:
    """The meta volume of this node's settings, checked. Faulty if it is unusable."""
    site = config.load_options(config.site_paths(home.path))
    if not site.use_meta_volume:
        return None
    meta = MetaVolume(site.meta_volume_mnt, os.path.join(home.path, "meta-volume"))
    meta.check()
    return meta


def _path(meta: MetaVolume, volume: Volume) -> str:
    return os.path.join(meta.folder, "volumes", volume.name, "volume.json")


def _as_known(meta: MetaVolume, volume: Volume) -> Volume:
    """The volume with the identity that other nodes know it by, if they do."""
    path = _path(meta, volume)
    try:
        with open(path, encoding="ascii") as file:
            values = json.load(file)
        if values["format"] != _FORMAT:
            raise UsageError(f"{path}: format {values['format']} is unknown to this version of gsync; upgrade gsync")
        known = replace(volume, uuid=str(UUID(values["uuid"])), tag=bytes.fromhex(values["tag"]),
                        root=bytes.fromhex(values["root"]), file_system=dict(values["file_system"]))
    except FileNotFoundError:
        return volume
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{path}: damaged: {exc!r}") from exc
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from exc
    if not same_tree(known, volume):
        raise UsageError(f"volume {volume.name}: {volume.path} is not the tree that other nodes have under this name "
                         "(another directory, or another file system); choose another name, or remove "
                         f"{path} if no node has that tree any more")
    return replace(volume, uuid=known.uuid, tag=known.tag)
