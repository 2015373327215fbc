# SPDX-License-Identifier: Apache-2.0
"""Penstock: tensors between NVMe drives and memory at the speed of the drives.

`penstock.io` is the asynchronous I/O library.
"""

from __future__ import annotations

from penstock.errors import Error

__version__ = "0.1.0"
__all__ = ["Error", "__version__"]
