"""Values that turn on every part of the chart quire."""

from typing import Any

EVERYTHING: dict[str, Any] = {
    "watchNamespaces": ["team-a"],
    "worker": {"spot": {"labelKey": "example.com/spot", "labelValue": "yes"}},
    "router": {
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]},
        "apiKeys": {"existingSecret": "keys"},
        "requireTenant": True,
        "settings": {"faults": {"max_resumes": 2}},
        "admin": {"enabled": True},
    },
    "redis": {"mode": "bundled"},
    "keda": {
        "tlsSecret": "scaler-tls",
        "authentication": {"name": "quire-scaler"},
        "prometheusAddress": "http://prometheus:9090",
    },
    "metrics": {
        "serviceMonitor": {"enabled": True},
        "podMonitor": {"enabled": True},
        "rules": {"enabled": True},
        "dashboards": {"enabled": True},
    },
}
EXTERNAL_REDIS: dict[str, Any] = {"redis": {"mode": "external", "external": {"existingSecret": "redis-url"}}}
