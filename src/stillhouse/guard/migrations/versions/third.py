"""Evidence of questions that hang together: tests by blocks. What was counted before was counted
for another test, so evidence begins anew; flags stay."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("clients", sa.Column("bets", sa.JSON))
    clients = sa.table("clients", *map(sa.column, ("asked", "odd", "window")))
    op.execute(sa.update(clients).values(asked=0, odd=0, window=1))


def downgrade() -> None:
    op.drop_column("clients", "bets")
