"""InferenceService: one model, served by a number of equal replicas.

This module must not know manifests, flags or files.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quire_operator.api.base import ApiModel, NotYet, Rule
from quire_operator.api.operations import AdapterSpec, DisaggregationSpec, RolloutSpec, ScalingSpec
from quire_operator.api.resource import API_VERSION, MAX_NAME_LENGTH, Kind, ObjectMeta, PrinterColumn
from quire_operator.api.status import InferenceServiceStatus
from quire_operator.api.traffic import PriceSpec, RoutingSpec
from quire_operator.api.workload import (
    BY_NAME,
    AcceleratorSpec,
    EngineSpec,
    ModelSpec,
    ParallelismSpec,
    PlacementSpec,
    PodTemplateSpec,
    ResourcesSpec,
)


def _devices_match(spec: Any) -> bool:
    ranks: int = spec.parallelism.tensor * spec.parallelism.pipeline * spec.parallelism.data
    return spec.accelerator is None or spec.accelerator.count == ranks


def _adapter_names_are_free(spec: Any) -> bool:
    taken = {spec.model.name, *spec.model.aliases}
    names = [adapter.name for adapter in spec.adapters]
    return len(set(names)) == len(names) and not taken & set(names)


def _adapters_leave_the_resources_name(service: Any) -> bool:
    names = {adapter.name for adapter in service.spec.adapters}
    return service.spec.model.name is not None or service.metadata.name not in names


class InferenceServiceSpec(ApiModel):
    """What is served and how."""

    model: ModelSpec
    """Which weights are served, from where and under which names."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Workers. With scaling, leave it out: the autoscaler writes it."""
    scaling: ScalingSpec | None = None
    """Replicas that follow demand."""
    parallelism: ParallelismSpec = ParallelismSpec()
    """How one replica spreads over devices."""
    engine: EngineSpec = EngineSpec()
    """How the engine runs."""
    resources: ResourcesSpec = ResourcesSpec()
    """CPU and memory of each replica."""
    accelerator: AcceleratorSpec | None = None
    """Devices of each replica; without, the model runs on CPUs."""
    adapters: Annotated[
        tuple[AdapterSpec, ...], Field(max_length=64, json_schema_extra=BY_NAME), NotYet("LoRA adapters in the engine")
    ] = ()
    """LoRA adapters, served under their own names."""
    disaggregation: Annotated[DisaggregationSpec | None, NotYet("the hand-off of KV blocks between workers")] = None
    """Prompts are computed by other workers than answers."""
    rollout: RolloutSpec = RolloutSpec()
    """How a new revision replaces the old one."""
    placement: PlacementSpec = PlacementSpec()
    """Where the pods may run."""
    pod_template: PodTemplateSpec = PodTemplateSpec()
    """The few things about the pods that a user may add."""
    routing: RoutingSpec = RoutingSpec()
    """How routers treat its requests."""
    price: PriceSpec | None = None
    """What its tokens cost; nothing when absent."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.accelerator) || "
            "self.accelerator.count == self.parallelism.tensor * self.parallelism.pipeline * self.parallelism.data",
            check=_devices_match,
            message="accelerator.count must equal parallelism.tensor x pipeline x data; change one of them",
            field="accelerator",
        ),
        Rule(
            cel="!has(self.adapters) || self.adapters.all(a, self.adapters.exists_one(b, a.name == b.name)"
            " && (!has(self.model.name) || a.name != self.model.name)"
            " && (!has(self.model.aliases) || !(a.name in self.model.aliases)))",
            check=_adapter_names_are_free,
            message="an adapter's name is used twice, or is the model's; rename it",
            field="adapters",
        ),
        Rule(
            cel="has(self.accelerator) || !has(self.engine.gpuMemoryUtilizationPercent)",
            check=lambda spec: spec.accelerator is not None or spec.engine.gpu_memory_utilization_percent is None,
            message="engine.gpuMemoryUtilizationPercent needs spec.accelerator; on CPUs, set engine.kvCacheMemory instead",
            field="engine",
        ),
        Rule(
            cel="has(self.accelerator) || !has(self.model.quantization) || self.model.quantization != 'fp8'",
            check=lambda spec: spec.accelerator is not None or spec.model.quantization != "fp8",
            message="model.quantization fp8 needs spec.accelerator; on CPUs, write int8 or int8-weight-only",
            field="model",
        ),
        Rule(
            cel="!has(self.accelerator) || !has(self.model.quantization)"
            " || !(self.model.quantization in ['int8', 'int8-weight-only'])",
            check=lambda spec: spec.accelerator is None or spec.model.quantization not in ("int8", "int8-weight-only"),
            message="model.quantization int8 and int8-weight-only compute on CPUs only; on accelerators, write fp8",
            field="model",
        ),
        Rule(
            cel="has(self.accelerator) || !has(self.engine.kvCacheDtype) || self.engine.kvCacheDtype != 'fp8'",
            check=lambda spec: spec.accelerator is not None or spec.engine.kv_cache_dtype != "fp8",
            message="engine.kvCacheDtype fp8 needs spec.accelerator; on CPUs, write auto",
            field="engine",
        ),
    )


class InferenceService(ApiModel):
    """One model behind the release's OpenAI-compatible endpoint."""

    api_version: Literal["quire.dev/v1alpha1"] = API_VERSION
    kind: Literal["InferenceService"] = "InferenceService"
    metadata: ObjectMeta
    spec: InferenceServiceSpec
    """What is served and how."""
    status: InferenceServiceStatus | None = None
    """What the operator found."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"size(self.metadata.name) <= {MAX_NAME_LENGTH} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            check=lambda service: True,  # ObjectMeta states the same
            message="metadata.name must be at most 40 characters of a-z, 0-9 and '-', beginning with a letter",
        ),
        Rule(
            cel="has(self.spec.model.name) || !has(self.spec.adapters) ||"
            " !self.spec.adapters.exists(a, a.name == self.metadata.name)",
            check=_adapters_leave_the_resources_name,
            message="an adapter has the resource's name, which the model is served under; rename it, or set spec.model.name",
            field="spec.adapters",
        ),
    )

    @property
    def served_name(self) -> str:
        """The name that clients put into "model"."""
        return self.spec.model.name or self.metadata.name

    @property
    def served_names(self) -> tuple[str, ...]:
        """The served name, then its aliases."""
        return (self.served_name, *(alias for alias in self.spec.model.aliases if alias != self.served_name))


INFERENCE_SERVICE = Kind(
    model=InferenceService,
    kind="InferenceService",
    plural="inferenceservices",
    singular="inferenceservice",
    short_names=("infsvc",),
    scale=True,
    columns=(
        PrinterColumn(name="Model", type="string", json_path=".status.model"),
        PrinterColumn(name="Ready", type="string", json_path='.status.conditions[?(@.type=="Ready")].status'),
        PrinterColumn(name="Reason", type="string", json_path='.status.conditions[?(@.type=="Ready")].reason'),
        PrinterColumn(name="Desired", type="integer", json_path=".spec.replicas"),
        PrinterColumn(name="Ready-Pods", type="integer", json_path=".status.readyReplicas"),
        PrinterColumn(name="Demand", type="integer", json_path=".status.scaling.demand"),
        PrinterColumn(name="Revision", type="string", json_path=".status.revision"),
        PrinterColumn(name="Rollout", type="string", json_path=".status.rollout.phase", priority=1),
        PrinterColumn(name="URL", type="string", json_path=".status.url", priority=1),
        PrinterColumn(name="Source", type="string", json_path=".spec.model.uri", priority=1),
        PrinterColumn(name="Accelerators", type="integer", json_path=".spec.accelerator.count", priority=1),
        PrinterColumn(name="Provider", type="string", json_path=".status.scaling.provider", priority=1),
        PrinterColumn(
            name="Message", type="string", json_path='.status.conditions[?(@.type=="Ready")].message', priority=1
        ),
        PrinterColumn(name="Age", type="date", json_path=".metadata.creationTimestamp"),
    ),
)
