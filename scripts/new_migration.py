"""Write a migration from what the tables say: `scripts/new_migration.py REVISION MESSAGE`.

Read what it wrote before you commit it, and set `HEAD` in core/store.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic import command
from sqlalchemy import create_engine

from finery.core import assets, compute, endpoints, files, jobs, migrations, workspaces  # noqa: F401  the tables


def main(revision: str, message: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{Path(folder) / 'old.db'}")
        migrations.upgrade(engine)
        config = migrations._config()
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.revision(config, message, autogenerate=True, rev_id=revision)


if __name__ == "__main__":
    main(*sys.argv[1:])
