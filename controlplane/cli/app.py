"""Every command of the program, under its name."""

from controlplane.cli import (
    administrators,
    audit,
    budgets,
    configuration,
    credentials,
    database,
    devices,
    keys,
    limits,
    nodes,
    organizations,
    prices,
    providers,
    routers,
    rules,
    service,
    tiers,
    users,
)
from controlplane.cli.chat import chat
from controlplane.cli.dev import dev
from controlplane.cli.doctor import doctor
from controlplane.cli.explain import explain
from controlplane.cli.health import health
from controlplane.cli.login import login, logout
from controlplane.cli.programs import controlplane, dataplane, mock
from controlplane.cli.status import status
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.usage import logs, usage
from controlplane.cli.verification import verify

app = new_app("Tollkeeper: an LLM gateway. Start with `tollkeeper dev`.")

app.command(epilog=example("dev --port 8080"))(dev)
for _name, _noun in {
    "org": organizations,
    "user": users,
    "device": devices,
    "key": keys,
    "provider": providers,
    "credential": credentials,
    "router": routers,
    "rule": rules,
    "limit": limits,
    "tier": tiers,
    "budget": budgets,
    "price": prices,
    "admin": administrators,
    "node": nodes,
    "service": service,
    "audit": audit,
    "config": configuration,
    "db": database,
}.items():
    app.add_typer(_noun.app, name=_name)
app.command(
    epilog=example("usage --org acme --by model --since 2026-01-01", "usage --by day -o json")
)(usage)
app.command(epilog=example("logs --user acme/alice --limit 20", "logs --since 24h -o json"))(logs)
app.command(
    epilog=example(
        "explain 01936b2e-7c1a-7000-8000-5d1f0c9a3b42",
        "explain 01936b2e-7c1a-7000-8000-5d1f0c9a3b42 -o json",
    )
)(explain)
app.command(epilog=example("verify", "verify --repair -o json", "verify --recount --repair"))(
    verify
)
app.command(epilog=example("status", "status -o json"))(status)
app.command(
    epilog=example(
        "chat --model gpt-4o-mini --stream 'Why is the sky blue?'", "chat --interactive --stream"
    )
)(chat)
app.command(
    epilog=example(
        "login --url https://gateway.example",
        "login --device --name build-server --wait 1h",
        "pass show gateway | tollkeeper login --api-key-stdin",
    )
)(login)
app.command(epilog=example("logout"))(logout)
app.command(epilog=example("doctor", "doctor -o json"))(doctor)
app.command(epilog=example("health http://127.0.0.1:8080"))(health)
app.command(epilog=example("controlplane"))(controlplane)
app.command(epilog=example("dataplane"))(dataplane)
app.command(epilog=example("mock --port 9090"))(mock)
