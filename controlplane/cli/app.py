"""Every command of the program, under its name."""

from controlplane.cli import (
    administrators,
    credentials,
    database,
    keys,
    limits,
    nodes,
    organizations,
    prices,
    providers,
    routers,
    rules,
    users,
)
from controlplane.cli.chat import chat
from controlplane.cli.dev import dev
from controlplane.cli.health import health
from controlplane.cli.programs import controlplane, dataplane, mock
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.usage import logs, usage

app = new_app("Tollkeeper: an LLM gateway. Start with `tollkeeper dev`.")

app.command(epilog=example("dev --port 8080"))(dev)
for _name, _noun in {
    "org": organizations,
    "user": users,
    "key": keys,
    "provider": providers,
    "credential": credentials,
    "router": routers,
    "rule": rules,
    "limit": limits,
    "price": prices,
    "admin": administrators,
    "node": nodes,
    "db": database,
}.items():
    app.add_typer(_noun.app, name=_name)
app.command(
    epilog=example("usage --org acme --by model --since 2026-01-01", "usage --by day -o json")
)(usage)
app.command(epilog=example("logs --user acme/alice --limit 20", "logs --since 24h -o json"))(logs)
app.command(epilog=example("chat --model gpt-4o-mini --stream 'Why is the sky blue?'"))(chat)
app.command(epilog=example("health http://127.0.0.1:8080"))(health)
app.command(epilog=example("controlplane"))(controlplane)
app.command(epilog=example("dataplane"))(dataplane)
app.command(epilog=example("mock --port 9090"))(mock)
