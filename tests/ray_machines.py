"""Ray clusters on loopback, each node of which is small and takes the second loopback address."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SMALL: dict[str, Any] = {"object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.2"}


@contextmanager
def machines(environment: dict[str, str]) -> Iterator[Any]:
    """A cluster of one machine with two cores; its processes get these variables too."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", **environment}.items():
            patch.setenv(name, value)
        from ray._common.utils import get_ray_address_file
        from ray.cluster_utils import Cluster as Machines

        # Ray writes the address of a head beside its usual folder, though that is not the one used here.
        os.makedirs(os.path.dirname(get_ray_address_file(None)), exist_ok=True)
        made, folder = Machines(), Path(tempfile.mkdtemp(prefix="nw-"))  # short: sockets' names go into it
        try:
            made.add_node(num_cpus=2, **SMALL, include_dashboard=False, temp_dir=str(folder))
            yield made
        finally:
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
