"""What was before: of an endpoint's traffic, of a deployment; its load's wish; its falls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("endpoints", _before())
    op.add_column("deployments", _before())
    op.add_column("deployments", sa.Column("scaled", sa.Integer(), nullable=True))
    falls = sa.Column("falls", sa.Integer(), nullable=False, server_default="0")
    op.add_column("deployments", falls)


def downgrade() -> None:
    for name in ("falls", "scaled", "before"):
        op.drop_column("deployments", name)
    op.drop_column("endpoints", "before")


def _before() -> sa.Column[object]:
    return sa.Column("before", sa.JSON(), nullable=False, server_default="{}")
