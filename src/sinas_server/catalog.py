"""Every slice of the platform, by what it contributes: the only file that knows them all."""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter

from sinas_server.admin.containers import containers_router
from sinas_server.admin.queue import queue_router
from sinas_server.admin.restart import restart_router
from sinas_server.admin.rotation import rotation_router
from sinas_server.admin.system import SYSTEM, system_router
from sinas_server.admin.workers import workers_router
from sinas_server.agents import routes as agents
from sinas_server.agents.bootstrap import bootstrap as bootstrap_agents
from sinas_server.agents.kind import AGENT
from sinas_server.chats.again import again_router
from sinas_server.chats.approvals import approvals_router
from sinas_server.chats.attached import attached_router
from sinas_server.chats.branches import branches_router
from sinas_server.chats.chat import CHATS
from sinas_server.chats.chat_batches import CHAT_BATCH_LOOP, CHAT_MEMBERS, chat_batches_router
from sinas_server.chats.delegate import AgentTools
from sinas_server.chats.departure import delete_chats
from sinas_server.chats.expiry import EXPIRY_LOOP
from sinas_server.chats.invoke import invoke_router
from sinas_server.chats.jobs import CHAT_JOB
from sinas_server.chats.late_hooks import LATE_HOOKS_LOOP
from sinas_server.chats.messages import messages_router
from sinas_server.chats.pending_input import pending_input_router
from sinas_server.chats.results import ResultTools
from sinas_server.chats.routes import chats_router
from sinas_server.chats.stop import SETTLE_LOOP
from sinas_server.chats.testing_routes import testing_router
from sinas_server.chats.tools import SystemTools
from sinas_server.chats.waits import WAITS_LOOP
from sinas_server.config import routes as config
from sinas_server.dependencies import routes as dependencies
from sinas_server.dependencies.bootstrap import bootstrap as bootstrap_dependencies
from sinas_server.dependencies.jobs import PACKAGE_JOB
from sinas_server.dependencies.kind import DEPENDENCY
from sinas_server.dependencies.retention import PRUNE_LOOP
from sinas_server.dependencies.tools import PackageTools
from sinas_server.functions import executions
from sinas_server.functions import routes as functions
from sinas_server.functions.batches import BATCH_LOOP, EXECUTION_MEMBERS, batches_router
from sinas_server.functions.callbacks import CALLBACK_LOOP
from sinas_server.functions.concurrency import ADMIT_LOOP
from sinas_server.functions.departure import forget_executions
from sinas_server.functions.jobs import EXECUTION_JOB
from sinas_server.functions.kind import FUNCTION
from sinas_server.functions.logs import logs_router
from sinas_server.functions.pool import POOL_COMMANDS
from sinas_server.functions.rerun import rerun_router
from sinas_server.functions.retention import RETENTION_LOOP
from sinas_server.functions.tools import FunctionTools
from sinas_server.functions.tree import tree_router
from sinas_server.identity import routers as identity
from sinas_server.identity.key_uses import KEY_USE_LOOP
from sinas_server.identity.mail import LETTER_TASK, MAIL_TASK, send_mail
from sinas_server.identity.reference import RESOURCES as PEOPLE
from sinas_server.identity.sweep import SWEEP_LOOP
from sinas_server.kernel.access import AccessResource, Caller
from sinas_server.kernel.blobs import BLOBS_LOOP
from sinas_server.kernel.command import Handler
from sinas_server.kernel.delivery import DELIVERY_TASK, deliver_task
from sinas_server.kernel.job import AnyJob
from sinas_server.kernel.kind import AnyKind
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.outbox import TASK_JOB
from sinas_server.kernel.purge import PURGE_LOOP, TASKS_LOOP
from sinas_server.kernel.routes import crud_router
from sinas_server.kernel.runtime import BatchMembers, Departure, Runtime, TaskHandler
from sinas_server.kernel.tool import Toolset
from sinas_server.openai_adapter.models import MODELS
from sinas_server.openai_adapter.response_routes import response_router
from sinas_server.openai_adapter.responses import FORGET_LOOP
from sinas_server.openai_adapter.routes import adapter_router
from sinas_server.providers import routes as usage
from sinas_server.providers.bootstrap import bootstrap as bootstrap_providers
from sinas_server.providers.budget import BUDGET, SPENDING_LOOP
from sinas_server.providers.check import check_router
from sinas_server.providers.kind import PROVIDER
from sinas_server.providers.retention import USAGE_LOOP
from sinas_server.secrets import routes as secrets
from sinas_server.secrets.departure import forget_secrets
from sinas_server.secrets.kind import SECRET
from sinas_server.skills import routes as skills
from sinas_server.skills.kind import SKILL
from sinas_server.skills.tools import SkillTools
from sinas_server.templates import routes as templates
from sinas_server.templates.bootstrap import bootstrap as bootstrap_templates
from sinas_server.templates.kind import TEMPLATE
from sinas_server.templates.mail import send_letter

KINDS: tuple[AnyKind, ...] = (DEPENDENCY, PROVIDER, SECRET, SKILL, FUNCTION, AGENT, TEMPLATE, BUDGET)
"""In the order in which they are applied: what is referred to comes first."""

RESOURCES: tuple[AccessResource, ...] = (*PEOPLE, *executions.RESOURCES, CHATS, MODELS, usage.USAGE, SYSTEM)
"""What permissions are about besides the kinds."""

RUNTIME_ROUTERS: tuple[APIRouter, ...] = (
    *functions.RUNTIME_ROUTERS,
    chats_router,
    *identity.RUNTIME_ROUTERS,
    *executions.RUNTIME_ROUTERS,
    tree_router,
    logs_router,
    rerun_router,
    batches_router,
    skills.runtime_router,
    agents.runtime_router,
    again_router,
    branches_router,
    attached_router,
    chat_batches_router,
    pending_input_router,
    approvals_router,
    invoke_router,
    testing_router,
    usage.runtime_router,
    *templates.RUNTIME_ROUTERS,
)
"""Mounted at the root; the first is matched first, so what is called most stands there."""

MANAGEMENT_ROUTERS: tuple[APIRouter, ...] = (
    *identity.MANAGEMENT_ROUTERS,
    dependencies.router,
    *functions.MANAGEMENT_ROUTERS,
    skills.management_router,
    agents.management_router,
    crud_router(PROVIDER),
    check_router,
    crud_router(BUDGET),
    messages_router,
    usage.management_router,
    secrets.router,
    *templates.MANAGEMENT_ROUTERS,
    config.router,
    queue_router,
    containers_router,
    system_router,
    restart_router,
    rotation_router,
    workers_router,
)
"""Mounted at `/api/v1`."""

ADAPTER_ROUTERS: tuple[APIRouter, ...] = (adapter_router, response_router)
"""Mounted at `/adapters/openai`."""

TOOLSETS: tuple[Toolset, ...] = (
    *(FunctionTools(), SkillTools(), AgentTools()),
    *(SystemTools(), PackageTools(), ResultTools()),
)
TASKS: Mapping[str, TaskHandler] = {MAIL_TASK: send_mail, LETTER_TASK: send_letter, DELIVERY_TASK: deliver_task}
COMMANDS: Mapping[str, Handler] = POOL_COMMANDS
"""What a function worker does when it is told to."""

JOBS: Mapping[str, AnyJob] = {
    "tasks": TASK_JOB,
    "packages": PACKAGE_JOB,
    "functions": EXECUTION_JOB,
    "agents": CHAT_JOB,
}
"""Queue → the job of those who work on it."""

BATCH_MEMBERS: tuple[BatchMembers, ...] = (EXECUTION_MEMBERS, CHAT_MEMBERS)
"""What batches may hold."""

DEPARTURES: tuple[Departure, ...] = (delete_chats, forget_executions, forget_secrets)
"""What happens to a user's data when he is deleted."""

FUNCTION_LOOPS: tuple[Loop, ...] = (ADMIT_LOOP, CALLBACK_LOOP, BATCH_LOOP, RETENTION_LOOP)

LOOPS: tuple[Loop, ...] = (
    *(PURGE_LOOP, TASKS_LOOP, SWEEP_LOOP, EXPIRY_LOOP, SETTLE_LOOP, WAITS_LOOP),
    *(CHAT_BATCH_LOOP, FORGET_LOOP, SPENDING_LOOP, LATE_HOOKS_LOOP, PRUNE_LOOP, BLOBS_LOOP),
    *(USAGE_LOOP, *FUNCTION_LOOPS),
)
"""Run by the scheduler."""

API_LOOPS: tuple[Loop, ...] = (KEY_USE_LOOP,)
"""Run by every API process."""

Bootstrap = Callable[[Runtime, Caller], Awaitable[None]]

BOOTSTRAPS: tuple[Bootstrap, ...] = (bootstrap_templates, bootstrap_dependencies)
"""What every installation starts with, on behalf of its administrator."""

EMBEDDED_BOOTSTRAPS: tuple[Bootstrap, ...] = (bootstrap_providers, bootstrap_agents)
"""What an embedded installation starts with, on behalf of its administrator."""
