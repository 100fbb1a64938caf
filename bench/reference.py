"""What `GET /auth/me` is compared with: a bare FastAPI route doing one SELECT, served by uvicorn as the product is.

python -m bench.reference PORT      DATABASE_URL says where; GET /users/{id}
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

import uvicorn
import uvloop
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Boolean, Column, DateTime, MetaData, Table, Text, Uuid, select
from sqlalchemy.ext.asyncio import create_async_engine

USERS = Table(
    "users",
    MetaData(),
    Column("id", Uuid, primary_key=True),
    Column("email", Text),
    Column("is_active", Boolean),
    Column("created_at", DateTime(timezone=True)),
    Column("last_login_at", DateTime(timezone=True)),
)


class User(BaseModel):
    """The answer."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str
    is_active: bool
    created_at: datetime
    last_login_at: datetime | None


def create_app(database_url: str) -> FastAPI:
    """The application; its pool is that of the product."""
    engine = create_async_engine(
        database_url, pool_size=10, max_overflow=10, connect_args={"prepare_threshold": None, "connect_timeout": 10}
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/users/{user_id}")
    async def get_user(user_id: UUID) -> User:
        async with engine.connect() as connection:
            row = (await connection.execute(select(USERS).where(USERS.c.id == user_id))).one_or_none()
        if row is None:
            raise HTTPException(404)
        return User.model_validate(row)

    return app


if __name__ == "__main__":
    config = uvicorn.Config(
        create_app(os.environ["DATABASE_URL"]),
        port=int(sys.argv[1]),
        loop="none",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
    )
    uvloop.run(uvicorn.Server(config).serve())
