"""How often the instances of a deployment fell."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    falls = sa.Column("falls", sa.Integer(), nullable=False, server_default="0")
    op.add_column("deployments", falls)


def downgrade() -> None:
    op.drop_column("deployments", "falls")
