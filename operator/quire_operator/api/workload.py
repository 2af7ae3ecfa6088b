"""The parts of an InferenceService's spec that shape its pods: model, engine, resources, accelerator, placement, pod template.

A change in any of these makes a new revision. This module must not know manifests or flags: `quire_operator.manifests` renders these.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quire_contract import names
from quire_operator.api.base import ApiModel, NotYet, Rule
from quire_operator.api.model_uri import ModelUriText
from quire_operator.api.types import (
    Annotations,
    BlockSize,
    EnvName,
    Image,
    LabelKey,
    Labels,
    LabelValue,
    ObjectName,
    PositiveInt32,
    Quantity,
    ServedName,
    ShortText,
    quantity_value,
)

SET = {"x-kubernetes-list-type": "set"}
BY_NAME = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
RESERVED_ENV = frozenset(
    {
        names.ENV_HOST,
        names.ENV_PORT,
        names.ENV_HEALTH_PORT,
        names.ENV_EVENTS_ENDPOINT,
        names.ENV_REPLAY_ENDPOINT,
        names.ENV_POD_NAME,
        names.ENV_POD_IP,
        names.ENV_TRUST_DIR,
        names.ENV_COMPUTE_THREADS,
        names.ENV_API_KEY,
        "MODEL_DIR",
        "TMPDIR",
        "XDG_CACHE_HOME",
        "TRITON_CACHE_DIR",
    }
)
_RESERVED_CEL = ", ".join(f"'{name}'" for name in sorted(RESERVED_ENV))


class SecretReference(ApiModel):
    """A Secret in the namespace of the resource that names it."""

    name: ObjectName
    """The Secret's name."""


class ModelSpec(ApiModel):
    """Which weights are served, from where and under which names."""

    uri: ModelUriText
    """Where the files are: hf://org/name, pvc://claim/path, s3://bucket/prefix, https://host/path, file:///folder or file://./folder."""
    revision: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None = (
        None
    )
    """The commit, tag or branch of an hf:// repository; a commit makes the service reproducible."""
    name: ServedName | None = None
    """The name that clients put into "model"; the resource's own name when absent."""
    aliases: Annotated[tuple[ServedName, ...], Field(max_length=16, json_schema_extra=SET)] = ()
    """Further names for the same model."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of weights and activations; auto takes the checkpoint's."""
    quantization: Annotated[
        Literal["fp8", "int8", "int8-weight-only", "int4", "awq", "gptq"] | None,
        NotYet("4-bit weights in the engine", except_for=("fp8", "int8", "int8-weight-only")),
    ] = None
    """How the projections of a float checkpoint are quantised while it is loaded: int8 (weights and activations) or int8-weight-only on
    CPUs, fp8 on accelerators."""
    task: Literal["auto", "generate", "embed", "score"] | None = None
    """What the model is served for; absent or auto, as its architecture and files say."""
    pooling: Literal["mean", "last", "cls"] | None = None
    """How hidden states become an embedding; absent, as the checkpoint's files say, else by architecture."""
    max_model_len: Annotated[int, Field(ge=16, le=16_777_216)] | None = None
    """Longest prompt plus answer in tokens; absent, the model's own limit, made smaller if the KV memory cannot hold it."""
    secret_ref: SecretReference | None = None
    """Credentials of a private source: keys HF_TOKEN; or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_REGION); or TOKEN."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.revision) || self.uri.startsWith('hf://')",
            check=lambda model: model.revision is None or model.uri.startswith("hf://"),
            message="only an hf:// source has revisions; remove it, or put the version into the uri's path",
            field="revision",
        ),
        Rule(
            cel="!has(self.secretRef) || !(self.uri.startsWith('pvc://') || self.uri.startsWith('file:'))",
            check=lambda model: model.secret_ref is None or not model.uri.startswith(("pvc://", "file:")),
            message="only an hf://, s3:// or http(s):// source has credentials; remove it",
            field="secretRef",
        ),
        Rule(
            cel="!has(self.name) || !has(self.aliases) || !self.aliases.exists(a, a == self.name)",
            check=lambda model: model.name not in model.aliases,
            message="an alias repeats the model's name; remove it",
            field="aliases",
        ),
        Rule(
            cel="!has(self.aliases) || self.aliases.all(a, self.aliases.exists_one(b, a == b))",
            check=lambda model: len(set(model.aliases)) == len(model.aliases),
            message="an alias is listed twice; remove one",
            field="aliases",
        ),
    )


class EngineSpec(ApiModel):
    """How the engine runs. What is absent, the worker chooses for the machine it finds itself on."""

    image: Image | None = None
    """The worker's image; the release's when absent. Part of the revision: changing it rolls the pods."""
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Most requests that run at once."""
    max_num_batched_tokens: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Token budget of one step; a longer prompt is computed in chunks of it."""
    block_size: BlockSize | None = None
    """Tokens per KV block: a multiple of 16."""
    enable_prefix_caching: bool = True
    """Keep and share the KV blocks of prompts' common beginnings."""
    kv_cache_memory: Quantity | None = None
    """Bytes for KV blocks, such as 8Gi; absent, what the device has left within gpuMemoryUtilizationPercent."""
    gpu_memory_utilization_percent: Annotated[int, Field(ge=10, le=98)] | None = None
    """Share of the accelerator's memory that weights, activations and KV blocks together may take."""
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    """Seed of requests that bring none."""
    generation_defaults: Literal["Model", "Neutral"] = "Model"
    """Sampling defaults: Model reads the checkpoint's generation_config.json, Neutral ignores it."""
    depth: Literal[1, 2] | None = None
    """Steps in flight; absent, what measurement says for the device."""
    compute_threads: Annotated[int, Field(ge=1, le=512)] | None = None
    """Compute threads of one worker; absent, the CPU limit of its container."""
    max_num_queued_requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests that may wait; a further one gets 429."""
    max_num_queued_tokens: PositiveInt32 | None = None
    """Prompt tokens that may wait; a further request gets 429."""
    drain_timeout_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """How long a terminating worker lets its streams finish."""
    start_timeout_seconds: Annotated[int, Field(ge=10, le=14_400)] = 600
    """How long a loading worker may make no progress, neither reading nor computing, before it is restarted."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Type of cached keys and values; auto takes that of the weights, fp8 holds twice as many tokens, on accelerators."""
    scheduling_policy: Literal["FirstComeFirstServed", "Priority", "ShortestJobFirst"] | None = None
    """Who is served first: who came first (when absent), the lowest `priority` of a request, or the shortest expected job."""
    queue_timeout_seconds: Annotated[int, Field(ge=1, le=604_800)] | None = None
    """How long a request may wait to begin; after that it gets 503. No limit when absent."""
    request_timeout_seconds: Annotated[int, Field(ge=1, le=604_800)] | None = None
    """How long a request may take; after that it ends with 504. No limit when absent."""
    tool_call_parser: (
        Literal["auto", "none", "hermes", "llama3_json", "mistral", "deepseek_v3", "deepseek_v31", "qwen3_coder"] | None
    ) = None
    """Format of the model's tool calls; absent or auto, as its chat template and vocabulary show."""
    reasoning_parser: Literal["auto", "none", "think", "mistral"] | None = None
    """How the model marks its reasoning; absent or auto, as its chat template and vocabulary show."""
    speculation: Annotated[Literal["Off", "NGram", "Draft"], NotYet("speculative decoding in the engine")] = "Off"
    """Draft tokens ahead and verify them in one step."""


class ParallelismSpec(ApiModel):
    """How one replica spreads over devices."""

    tensor: Annotated[int, Field(ge=1, le=64), NotYet("tensor parallelism in the engine")] = 1
    """Devices that share every layer."""
    pipeline: Annotated[int, Field(ge=1, le=64), NotYet("pipeline parallelism in the engine")] = 1
    """Stages that share the layers."""
    data: Annotated[int, Field(ge=1, le=64), NotYet("data parallelism in the engine")] = 1
    """Copies of the attention layers that step together."""
    expert: Annotated[bool, NotYet("expert parallelism in the engine")] = False
    """Spread experts, instead of slices of each, over the devices."""


class AcceleratorSpec(ApiModel):
    """The devices of one replica."""

    type: Literal["Nvidia"]
    """The vendor; the engine's GPU kernels are built for CUDA devices."""
    count: Annotated[int, Field(ge=1, le=64)] = 1
    """Devices per replica: tensor times pipeline times data."""
    product: LabelValue | None = None
    """The node label nvidia.com/gpu.product that a node must carry, such as NVIDIA-H100-80GB-HBM3."""


def _requests_fit(resources: "ResourcesSpec") -> bool:
    shared = resources.requests.keys() & resources.limits.keys()
    return all(quantity_value(resources.requests[key]) <= quantity_value(resources.limits[key]) for key in shared)


def _known_resource(key: str) -> bool:
    return key in {"cpu", "memory", "ephemeral-storage"} or ("/" in key and key != "nvidia.com/gpu")


_KEYS_CEL = "k in ['cpu', 'memory', 'ephemeral-storage'] || (k.contains('/') && k != 'nvidia.com/gpu')"
_KEYS_MESSAGE = (
    "knows cpu, memory, ephemeral-storage and extended resources such as vendor.example/device; "
    "accelerators are asked for in spec.accelerator"
)
ResourceMap = Annotated[dict[str, Quantity], Field(max_length=8)]


class ResourcesSpec(ApiModel):
    """CPU and memory of the worker's container, as Kubernetes writes them."""

    requests: ResourceMap = Field(default_factory=dict)
    """What the scheduler sets aside."""
    limits: ResourceMap = Field(default_factory=dict)
    """What the container may not exceed; the CPU limit is also the number of compute threads."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"!has(self.requests) || self.requests.all(k, {_KEYS_CEL})",
            check=lambda resources: all(map(_known_resource, resources.requests)),
            message=_KEYS_MESSAGE,
            field="requests",
        ),
        Rule(
            cel=f"!has(self.limits) || self.limits.all(k, {_KEYS_CEL})",
            check=lambda resources: all(map(_known_resource, resources.limits)),
            message=_KEYS_MESSAGE,
            field="limits",
        ),
        Rule(
            cel="!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || "
            "!quantity(string(self.requests[k])).isGreaterThan(quantity(string(self.limits[k]))))",
            check=_requests_fit,
            message="a request is larger than its limit; raise the limit or lower the request",
            field="requests",
        ),
    )


class Toleration(ApiModel):
    """A taint that the pods put up with."""

    key: LabelKey | None = None
    """The taint's key; absent with operator Exists matches every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists ignores the value."""
    value: LabelValue | None = None
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Only this effect; all when absent."""
    toleration_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """How long a NoExecute taint is put up with."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.operator == 'Exists' || has(self.key)",
            check=lambda toleration: toleration.operator == "Exists" or toleration.key is not None,
            message="operator Equal needs a key; name the taint, or write operator: Exists",
            field="key",
        ),
        Rule(
            cel="self.operator == 'Equal' || !has(self.value)",
            check=lambda toleration: toleration.operator == "Equal" or toleration.value is None,
            message="operator Exists ignores the value; remove it, or write operator: Equal",
            field="value",
        ),
    )


class TopologySpread(ApiModel):
    """How evenly the replicas lie over a topology."""

    topology_key: LabelKey
    """The node label that names a domain, such as topology.kubernetes.io/zone."""
    max_skew: Annotated[int, Field(ge=1, le=100)] = 1
    """Largest difference between two domains."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = "ScheduleAnyway"
    """Whether an uneven pod waits or runs."""


class PlacementSpec(ApiModel):
    """Where the pods may run."""

    node_selector: Labels = Field(default_factory=dict)
    """Labels that a node must carry."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints that are put up with."""
    topology_spread: Annotated[tuple[TopologySpread, ...], Field(max_length=4)] = ()
    """How replicas are spread; over nodes, where possible, when empty."""
    spot: Literal["Forbid", "Prefer", "Require"] = "Forbid"
    """Whether the pods run on nodes that may be taken away at short notice."""


class EnvVar(ApiModel):
    """An environment variable of the worker's container."""

    name: EnvName
    """The variable; those that the worker's launch relies on are reserved."""
    value: Annotated[str, Field(max_length=4096)] = ""
    """Its value, taken literally."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"!(self.name in [{_RESERVED_CEL}])",
            check=lambda variable: variable.name not in RESERVED_ENV,
            message="is set by Quire and cannot be overridden; remove it",
            field="name",
        ),
    )


class PodTemplateSpec(ApiModel):
    """The few things about the pods that a user may add. The rest keeps pods inside the restricted security profile."""

    labels: Labels = Field(default_factory=dict)
    """Further labels."""
    annotations: Annotations = Field(default_factory=dict)
    """Further annotations."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64, json_schema_extra=BY_NAME)] = ()
    """Further environment variables."""
    image_pull_secrets: Annotated[tuple[SecretReference, ...], Field(max_length=8, json_schema_extra=BY_NAME)] = ()
    """Credentials of the image's registry."""
    priority_class_name: ObjectName | None = None
    """Kubernetes' scheduling priority."""
    runtime_class_name: ObjectName | None = None
    """Container runtime, such as nvidia."""
    scheduler_name: ShortText | None = None
    """A scheduler other than the default one."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.labels) || self.labels.all(k, !k.contains('quire.dev/') && !k.startsWith('app.kubernetes.io/'))",
            check=lambda pod: (
                not any("quire.dev/" in key or key.startswith("app.kubernetes.io/") for key in pod.labels)
            ),
            message="labels of quire.dev and app.kubernetes.io are set by Quire; choose other keys",
            field="labels",
        ),
        Rule(
            cel="!has(self.annotations) || self.annotations.all(k, !k.contains('quire.dev/'))",
            check=lambda pod: not any("quire.dev/" in key for key in pod.annotations),
            message="annotations of quire.dev are set by Quire; choose other keys",
            field="annotations",
        ),
        Rule(
            cel="!has(self.env) || self.env.all(a, self.env.exists_one(b, a.name == b.name))",
            check=lambda pod: len({variable.name for variable in pod.env}) == len(pod.env),
            message="a variable is listed twice; remove one",
            field="env",
        ),
    )
