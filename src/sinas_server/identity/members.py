"""Which roles someone new gets."""

from uuid import UUID

from sqlalchemy import func, insert, literal, select
from sqlalchemy.types import Uuid

from sinas_server.identity.reference import GUESTS
from sinas_server.identity.tables import RoleRow, UserRoleRow
from sinas_server.kernel.unit import Db


async def join_first_roles(db: Db, user_id: UUID, email: str) -> None:
    """Put a new user into the roles of the e-mail's domain, or into GuestUsers if there are none."""
    domain = email.rpartition("@")[2]
    matching = (await db.execute(select(RoleRow.id).where(func.lower(RoleRow.email_domain) == domain))).scalars().all()
    chosen = RoleRow.id.in_(matching) if matching else RoleRow.name == GUESTS
    source = select(literal(user_id, Uuid), RoleRow.id).where(chosen)
    await db.execute(insert(UserRoleRow).from_select(["user_id", "role_id"], source))
