"""`python -m verification.probes` in the examined repository: a request on stdin, findings on stdout, both JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from verification.probes import probe


def main() -> None:
    """Request: {"config", "entry", "only", "overrides"}; the working directory is the repository's root."""
    request = json.load(sys.stdin)
    sys.path.insert(0, str(Path.cwd()))
    found = probe(request.pop("config"), root=Path.cwd(), **request)
    sys.stdout.write(json.dumps([finding.as_dict() for finding in found]))


if __name__ == "__main__":
    main()
