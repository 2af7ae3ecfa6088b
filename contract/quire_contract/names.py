"""Names that two processes, a manifest or a dashboard must spell alike: labels, ports, headers, environment, metrics.

Holds constants only.
"""

# Kubernetes
GROUP = "quire.dev"
LABEL_SERVICE = "quire.dev/service"
LABEL_ROLE = "quire.dev/role"
LABEL_REVISION = "quire.dev/revision"
LABEL_ROUTER_CONFIG = "quire.dev/router-config"
ANNOTATION_PAUSED = "quire.dev/paused"
ANNOTATION_APPLIED = "quire.dev/applied"
ANNOTATION_SERVED_NAMES = "quire.dev/served-names"
ANNOTATION_FORCE_ACTIVATION = "quire.dev/force-activation"
"""On an InferenceService: it counts as called, whatever the demand is."""
ANNOTATION_DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""On a pod; of several, those with the least go first."""
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_PART_OF = "app.kubernetes.io/part-of"
EXIT_MODEL_GONE = 3
"""Exit code of a worker whose model was deleted from its cache after it was fetched: only a fresh pod fetches it anew."""
ROLE_WORKER = "worker"
ROLE_ROUTER = "router"
TRUST_SECRET = "quire-trust"  # noqa: S105 - a Secret's name

# Ports, by the name that a container port has
PORT_HTTP = 8000
PORT_EVENTS = 5557
PORT_REPLAY = 5558
PORT_FETCH = 8001
PORT_HEALTH = 8002
PORT_ROUTER = 8080
PORT_ROUTER_ADMIN = 8081
PORT_SCALER = 9090
"""Of the Service in front of the operator's external scaler for KEDA."""
PORT_SCALER_POD = 9091
"""Where the leading operator itself listens for it."""
PORT_NAME_HTTP = "http"
PORT_NAME_EVENTS = "events"
PORT_NAME_REPLAY = "replay"
PORT_NAME_HEALTH = "health"

# Environment of a container: manifests write $(PORT) in args, `quire up` gives other values
ENV_HOST = "HOST"
ENV_PORT = "PORT"
ENV_HEALTH_PORT = "HEALTH_PORT"
ENV_EVENTS_ENDPOINT = "KV_EVENTS_ENDPOINT"
ENV_REPLAY_ENDPOINT = "KV_REPLAY_ENDPOINT"
ENV_POD_NAME = "POD_NAME"
ENV_POD_IP = "POD_IP"
ENV_TRUST_DIR = "TRUST_DIR"
ENV_COMPUTE_THREADS = "COMPUTE_THREADS"
ENV_API_KEY = "QUIRE_API_KEY"
ENV_REDIS_URL = "QUIRE_REDIS_URL"
ENV_REDIS_PASSWORD = "QUIRE_REDIS_PASSWORD"  # noqa: S105 - a variable's name
ENV_ADMIN_TOKEN = "QUIRE_ADMIN_TOKEN"  # noqa: S105 - a variable's name
ENV_STATE_DIR = "STATE_DIR"

# Headers. Internal ones are stripped from what tenants send; workers obey them only beside a right token.
HEADER_REQUEST_ID = "x-request-id"
HEADER_ANTHROPIC_REQUEST_ID = "request-id"
"""The same id under the name that Anthropic's clients read."""
HEADER_API_KEY = "x-api-key"
"""Where Anthropic's clients put the key."""
INTERNAL_HEADER_PREFIX = "x-quire-"
HEADER_TENANT = "x-quire-tenant"
HEADER_PRIORITY = "x-quire-priority"
HEADER_DEADLINE = "x-quire-deadline"
"""The seconds that are left for the request when it is sent, such as 12.5: no clock but the reader's own is needed."""
HEADER_CACHE_SALT = "x-quire-cache-salt"
HEADER_TOKEN = "x-quire-token"  # noqa: S105 - a header's name
# Answers: why a request was refused, which worker answered
HEADER_REASON = "x-quire-reason"
HEADER_WORKER = "x-quire-worker"
HEADER_FLAGS = "x-quire-flags"
"""Names of the content filters that found something to be flagged."""
REASON_DRAINING = "draining"
REASON_QUEUE_FULL = "queue_full"
REASON_QUEUE_TIMEOUT = "queue_timeout"
REASON_DEADLINE = "deadline"
REASON_NOT_READY = "not_ready"
REASON_ASLEEP = "asleep"
"""A worker's: it holds the weights and waits to be woken."""
# Saving of work, and routes
HEADER_MAX_TOKENS = "x-quire-max-tokens"
"""Of an answer whose request named no length: the one that its tenant could still pay for, where that is less than the model's."""
HEADER_CACHE = "x-quire-cache"
"""Of an answer: hit, miss, shared, bypass."""
HEADER_COALESCE = "x-quire-coalesce"
"""Of a request: off."""
HEADER_MODEL = "x-quire-model"
"""Of a request to a route: which of its models answers."""
HEADER_COMPLEXITY = "x-quire-complexity"
"""Of an answer: the request's score and what it is made of."""
REASON_NO_ENDPOINT = "no_endpoint"
"""A router's: no worker of the model became ready for as long as a request may wait for one."""

# HTTP paths that one process asks of another
PATH_HEALTH = "/health"
PATH_READY = "/ready"
PATH_METRICS = "/metrics"
PATH_MODELS = "/v1/models"
PATH_CHAT = "/v1/chat/completions"
PATH_COMPLETIONS = "/v1/completions"
PATH_RESPONSES = "/v1/responses"
PATH_MESSAGES = "/v1/messages"
PATH_COUNT_TOKENS = "/v1/messages/count_tokens"
PATH_EMBEDDINGS = "/v1/embeddings"
PATH_RERANK = "/v1/rerank"
PATH_SCORE = "/v1/score"
PATH_OPENAPI = "/openapi.json"
PATH_TOKENIZE = "/tokenize"
PATH_DETOKENIZE = "/detokenize"
PATH_PROMPT_BUNDLE = "/internal/prompt-bundle"
PATH_DRAIN = "/internal/drain"
PATH_FETCH_PROGRESS = "/progress"
PATH_REVISION_STATS = "/internal/revision-stats"
PATH_KV_EVENT_SOURCES = "/kv_event_sources"
PATH_DEBUG_ROUTE = "/debug/route"
PATH_RERANK_PLAIN = "/rerank"
PATH_RERANK_COHERE = "/v2/rerank"
PATH_SCORE_PLAIN = "/score"
PATH_ADMIN_USAGE = "/admin/usage"
PATH_ADMIN_TENANTS = "/admin/tenants"
PATH_DEMAND = "/internal/demand"
PATH_SLEEP = "/internal/sleep"
PATH_WAKE = "/internal/wake"
PATH_STARTUP = "/internal/startup"

# Metrics of the worker that dashboards, KEDA examples and gateway pickers read. Labels: model_name, engine.
VLLM_NUM_REQUESTS_RUNNING = "vllm:num_requests_running"
VLLM_NUM_REQUESTS_WAITING = "vllm:num_requests_waiting"
VLLM_NUM_REQUESTS_WAITING_BY_REASON = "vllm:num_requests_waiting_by_reason"
VLLM_KV_CACHE_USAGE_PERC = "vllm:kv_cache_usage_perc"
VLLM_CACHE_CONFIG_INFO = "vllm:cache_config_info"
VLLM_LORA_REQUESTS_INFO = "vllm:lora_requests_info"
VLLM_ENGINE_SLEEP_STATE = "vllm:engine_sleep_state"
VLLM_PROMPT_TOKENS = "vllm:prompt_tokens_total"
VLLM_PROMPT_TOKENS_CACHED = "vllm:prompt_tokens_cached_total"
VLLM_GENERATION_TOKENS = "vllm:generation_tokens_total"
VLLM_REQUEST_SUCCESS = "vllm:request_success_total"
VLLM_NUM_PREEMPTIONS = "vllm:num_preemptions_total"
VLLM_PREFIX_CACHE_QUERIES = "vllm:prefix_cache_queries_total"
VLLM_PREFIX_CACHE_HITS = "vllm:prefix_cache_hits_total"
VLLM_ADMISSION_REJECTIONS = "vllm:admission_rejections_total"
VLLM_TIME_TO_FIRST_TOKEN = "vllm:time_to_first_token_seconds"  # noqa: S105
VLLM_INTER_TOKEN_LATENCY = "vllm:inter_token_latency_seconds"  # noqa: S105
VLLM_TIME_PER_OUTPUT_TOKEN = "vllm:request_time_per_output_token_seconds"  # noqa: S105
VLLM_E2E_REQUEST_LATENCY = "vllm:e2e_request_latency_seconds"
VLLM_REQUEST_QUEUE_TIME = "vllm:request_queue_time_seconds"
VLLM_REQUEST_INFERENCE_TIME = "vllm:request_inference_time_seconds"
VLLM_REQUEST_PREFILL_TIME = "vllm:request_prefill_time_seconds"
VLLM_REQUEST_DECODE_TIME = "vllm:request_decode_time_seconds"
VLLM_REQUEST_PROMPT_TOKENS = "vllm:request_prompt_tokens"
VLLM_REQUEST_GENERATION_TOKENS = "vllm:request_generation_tokens"
VLLM_REQUEST_PARAMS_N = "vllm:request_params_n"
VLLM_REQUEST_PARAMS_MAX_TOKENS = "vllm:request_params_max_tokens"
VLLM_REQUEST_NUM_PREEMPTIONS = "vllm:request_num_preemptions"
VLLM_ITERATION_TOKENS = "vllm:iteration_tokens_total"
"""A histogram, despite its name."""

# Metrics of the worker that are ours
QUIRE_WORKER_STEP_SECONDS = "quire_worker_step_seconds"
QUIRE_WORKER_STEPS = "quire_worker_steps_total"
QUIRE_WORKER_NON_FINITE = "quire_worker_non_finite_outputs_total"
QUIRE_WORKER_STARTUP_SECONDS = "quire_worker_startup_seconds"
QUIRE_WORKER_PREEMPTED_TOKENS = "quire_worker_preempted_tokens_total"
QUIRE_WORKER_DEADLINES = "quire_worker_deadlines_total"
"""Requests that were ended by their deadline while they ran; those that never began are vllm:admission_rejections_total."""
QUIRE_WORKER_SLOW_READERS = "quire_worker_slow_readers_total"
QUIRE_WORKER_DRAINING = "quire_worker_draining"
QUIRE_WORKER_HTTP_REQUESTS = "quire_worker_http_requests_total"
QUIRE_WORKER_EMBEDDING_INPUTS = "quire_worker_embedding_inputs_total"
QUIRE_WORKER_RESIDENT_MEMORY_BYTES = "quire_worker_resident_memory_bytes"

# Metrics of the router
QUIRE_ROUTER_REQUESTS = "quire_router_requests_total"
QUIRE_ROUTER_REQUEST_SECONDS = "quire_router_request_seconds"
QUIRE_ROUTER_TIME_TO_FIRST_BYTE = "quire_router_time_to_first_byte_seconds"
QUIRE_ROUTER_CHOICE_SECONDS = "quire_router_choice_seconds"
QUIRE_ROUTER_CHOICES = "quire_router_choices_total"
QUIRE_ROUTER_RETRIES = "quire_router_retries_total"
QUIRE_ROUTER_IN_FLIGHT = "quire_router_requests_in_flight"
QUIRE_ROUTER_ENDPOINTS = "quire_router_endpoints"
QUIRE_ROUTER_MODEL_READY_ENDPOINTS = "quire_router_model_ready_endpoints"
"""{model}: endpoints that would take a request for it now; 0 is shown too."""
QUIRE_ROUTER_CONFIG_AGE_SECONDS = "quire_router_config_age_seconds"
"""How long ago the router last knew that its configuration was the newest."""
QUIRE_ROUTER_SERVICES = "quire_router_services"
"""InferenceServices in the configuration."""
QUIRE_ROUTER_INDEX_BLOCKS = "quire_router_index_blocks"
QUIRE_ROUTER_KV_BATCHES = "quire_router_kv_batches_total"
QUIRE_ROUTER_KV_GAPS = "quire_router_kv_gaps_total"
QUIRE_ROUTER_KV_SNAPSHOTS = "quire_router_kv_snapshots_total"
QUIRE_ROUTER_PREFIX_TOKENS = "quire_router_prefix_tokens_total"
QUIRE_ROUTER_PREFIX_HIT_TOKENS = "quire_router_prefix_hit_tokens_total"
QUIRE_ROUTER_EVENT_LAG_SECONDS = "quire_router_event_lag_seconds"
QUIRE_ROUTER_RESUMES = "quire_router_resumes_total"
"""{reason="migrate" | "died" | "lost" | "cut" | "stalled"}: streams that went on at another worker."""
QUIRE_ROUTER_EJECTIONS = "quire_router_ejections_total"
QUIRE_ROUTER_HEDGES = "quire_router_hedges_total"
"""{won="first" | "second" | "none"}: streams that were sent to a second worker."""
QUIRE_ROUTER_REDIS_UP = "quire_router_redis_up"
"""1 while Redis answers; 0 while it is away, and where there is none."""
QUIRE_ROUTER_REDIS_ERRORS = "quire_router_redis_errors_total"
QUIRE_ROUTER_LIMIT_LEASES = "quire_router_limit_leases"
QUIRE_ROUTER_USAGE_QUEUED = "quire_router_usage_queued"
QUIRE_ROUTER_USAGE_DROPPED = "quire_router_usage_dropped_total"
# Shown by the router's admin port only
QUIRE_ROUTER_TENANT_REQUESTS = "quire_router_tenant_requests_total"
"""{tenant, code="2xx" | "4xx" | "429" | "499" | "5xx"}: requests that limits let through."""
QUIRE_ROUTER_TENANT_TOKENS = "quire_router_tenant_tokens_total"
"""{tenant, kind="prompt" | "cached" | "output"}: cached ones are of the prompt's."""
QUIRE_ROUTER_TENANT_COST = "quire_router_tenant_cost_total"
"""{tenant}: in the currency."""
QUIRE_ROUTER_TENANT_REJECTIONS = "quire_router_tenant_rejections_total"
"""{tenant, reason}: the limit that refused."""
QUIRE_ROUTER_RESPONSE_CACHE = "quire_router_response_cache_total"
"""{result="hit" | "miss" | "shared" | "bypass"}: calls where answers are kept or shared."""
QUIRE_ROUTER_RESPONSE_CACHE_BYTES = "quire_router_response_cache_bytes"
"""In the router's memory."""
QUIRE_ROUTER_SHARED_BYTES = "quire_router_shared_generation_bytes"
"""Kept for clients that read one generation together."""
QUIRE_ROUTER_FALLBACKS = "quire_router_fallbacks_total"
"""{reason}: calls given to a route's next model after the one before failed."""
QUIRE_ROUTER_SHADOWS = "quire_router_shadow_requests_total"
"""{result="ok" | "error" | "dropped"}: copies of calls whose answers nobody sees."""
QUIRE_ROUTER_COMPLEXITY = "quire_router_complexity_score"
"""A histogram: scores of calls to routes that choose by them."""
QUIRE_ROUTER_COMPLEXITY_CHOICES = "quire_router_complexity_choices_total"
"""{route, model}: what they chose."""
QUIRE_ROUTER_CONFIG_INFO = "quire_router_config_info"
"""{digest}: 1 for the configuration in force; routers that serve the same have the same digest."""
QUIRE_ROUTER_CONFIG_STATE = "quire_router_config_state"
"""{state="none" | "saved" | "live"}: 1 for where it is from; saved: by an earlier process, the API server being away."""
QUIRE_ROUTER_CONFIG_REFUSED = "quire_router_config_refused_shards"
"""Shards (or the file) whose present content is refused; their last good one holds."""
QUIRE_ROUTER_CONFIG_REFUSALS = "quire_router_config_refusals_total"
QUIRE_ROUTER_QUEUE_LENGTH = "quire_router_queue_length"
"""{model, band="high" | "normal" | "low"}: requests that wait in the router; the band is the sign of their priority."""
QUIRE_ROUTER_QUEUE_BYTES = "quire_router_queue_bytes"
"""Bodies of the requests that wait in the router."""
QUIRE_ROUTER_HELD_REQUESTS = "quire_router_held_requests"
"""{model}: those that wait because no worker is ready."""
QUIRE_ROUTER_QUEUE_WAIT_SECONDS = "quire_router_queue_wait_seconds"
"""{model}, a histogram: of requests that waited and then started."""
QUIRE_ROUTER_QUEUE_DROPPED = "quire_router_queue_dropped_total"
"""{reason}: requests that did not start, or waited and left."""
QUIRE_ROUTER_DEMAND_OWN = "quire_router_demand_own_requests"
"""{service="namespace/name"}: requests that only this router knows: held here, or sent and not yet reported. Sum it over routers."""
QUIRE_ROUTER_DEMAND_WORKERS = "quire_router_demand_worker_requests"
"""{service}: queued and running at the workers, as these told every router. Take the largest over routers."""
QUIRE_ROUTER_FILTER = "quire_router_filter_total"
"""{filter, stage="prompt" | "output", action="block" | "redact" | "flag"}: requests in which a content filter found something."""

# Metrics of the operator, with their labels
QUIRE_OPERATOR_RECONCILES = "quire_operator_reconciles_total"
"""{result="success" | "retry" | "permanent" | "error"}: looks at one resource; permanent: its spec is wrong, error: unforeseen."""
QUIRE_OPERATOR_RECONCILE_SECONDS = "quire_operator_reconcile_seconds"
"""{kind}, a histogram: how long one look took."""
QUIRE_OPERATOR_QUEUE_DEPTH = "quire_operator_queue_depth"
"""Resources that wait to be looked at."""
QUIRE_OPERATOR_APPLIES = "quire_operator_applies_total"
"""{kind}: objects written."""
QUIRE_OPERATOR_SKIPPED_APPLIES = "quire_operator_skipped_applies_total"
"""Objects that were found as they should be."""
QUIRE_OPERATOR_PRUNES = "quire_operator_prunes_total"
"""{kind}: objects removed."""
QUIRE_OPERATOR_APPLY_ERRORS = "quire_operator_apply_errors"
"""Objects that the API server refuses now."""
QUIRE_OPERATOR_API_REQUESTS = "quire_operator_api_requests_total"
"""{method, kind, code}: requests to the API server; code "0": no answer came."""
QUIRE_OPERATOR_DEMAND = "quire_operator_demand_requests"
"""{service, service_namespace, service_name}: held, queued and running, over all routers; an HPA selects by the latter two."""
QUIRE_OPERATOR_DEMAND_AGE_SECONDS = "quire_operator_demand_age_seconds"
"""{service}: how long ago all routers were last heard."""
QUIRE_OPERATOR_DESIRED_REPLICAS = "quire_operator_desired_replicas"
"""{service}: what the autoscaler asks for."""
QUIRE_OPERATOR_SCALINGS = "quire_operator_scalings_total"
"""{direction="up" | "down", reason}: changes of the number of replicas that were written."""
QUIRE_OPERATOR_LEADER = "quire_operator_leader"
"""1 in the process that holds the Lease, 0 in the others."""
QUIRE_OPERATOR_SERVICES = "quire_operator_services"
"""{ready="true" | "false"}: InferenceServices by their Ready condition; set by the leader only."""

# Metrics that a worker must expose whatever it is doing: a stale name never errors in a dashboard, so a test scrapes for these.
WORKER_METRICS: tuple[str, ...] = (
    VLLM_NUM_REQUESTS_RUNNING,
    VLLM_NUM_REQUESTS_WAITING,
    VLLM_NUM_REQUESTS_WAITING_BY_REASON,
    VLLM_KV_CACHE_USAGE_PERC,
    VLLM_CACHE_CONFIG_INFO,
    VLLM_PROMPT_TOKENS,
    VLLM_PROMPT_TOKENS_CACHED,
    VLLM_GENERATION_TOKENS,
    VLLM_REQUEST_SUCCESS,
    VLLM_NUM_PREEMPTIONS,
    VLLM_PREFIX_CACHE_QUERIES,
    VLLM_PREFIX_CACHE_HITS,
    VLLM_ADMISSION_REJECTIONS,
    VLLM_TIME_TO_FIRST_TOKEN,
    VLLM_INTER_TOKEN_LATENCY,
    VLLM_TIME_PER_OUTPUT_TOKEN,
    VLLM_E2E_REQUEST_LATENCY,
    VLLM_REQUEST_QUEUE_TIME,
    VLLM_REQUEST_INFERENCE_TIME,
    VLLM_REQUEST_PREFILL_TIME,
    VLLM_REQUEST_DECODE_TIME,
    VLLM_REQUEST_PROMPT_TOKENS,
    VLLM_REQUEST_GENERATION_TOKENS,
    VLLM_REQUEST_PARAMS_N,
    VLLM_REQUEST_PARAMS_MAX_TOKENS,
    VLLM_REQUEST_NUM_PREEMPTIONS,
    VLLM_ITERATION_TOKENS,
    QUIRE_WORKER_STEP_SECONDS,
    QUIRE_WORKER_STEPS,
    QUIRE_WORKER_NON_FINITE,
    QUIRE_WORKER_STARTUP_SECONDS,
    QUIRE_WORKER_DRAINING,
    QUIRE_WORKER_HTTP_REQUESTS,
    QUIRE_WORKER_PREEMPTED_TOKENS,
    QUIRE_WORKER_DEADLINES,
    QUIRE_WORKER_SLOW_READERS,
)

ROUTER_METRICS: tuple[str, ...] = (
    QUIRE_ROUTER_REQUESTS,
    QUIRE_ROUTER_REQUEST_SECONDS,
    QUIRE_ROUTER_TIME_TO_FIRST_BYTE,
    QUIRE_ROUTER_CHOICE_SECONDS,
    QUIRE_ROUTER_CHOICES,
    QUIRE_ROUTER_RETRIES,
    QUIRE_ROUTER_IN_FLIGHT,
    QUIRE_ROUTER_ENDPOINTS,
    QUIRE_ROUTER_MODEL_READY_ENDPOINTS,
    QUIRE_ROUTER_CONFIG_AGE_SECONDS,
    QUIRE_ROUTER_SERVICES,
    QUIRE_ROUTER_INDEX_BLOCKS,
    QUIRE_ROUTER_KV_BATCHES,
    QUIRE_ROUTER_KV_GAPS,
    QUIRE_ROUTER_KV_SNAPSHOTS,
    QUIRE_ROUTER_PREFIX_TOKENS,
    QUIRE_ROUTER_PREFIX_HIT_TOKENS,
    QUIRE_ROUTER_RESUMES,
    QUIRE_ROUTER_EJECTIONS,
    QUIRE_ROUTER_HEDGES,
    QUIRE_ROUTER_REDIS_UP,
    QUIRE_ROUTER_REDIS_ERRORS,
    QUIRE_ROUTER_LIMIT_LEASES,
    QUIRE_ROUTER_USAGE_QUEUED,
    QUIRE_ROUTER_USAGE_DROPPED,
    QUIRE_ROUTER_RESPONSE_CACHE,
    QUIRE_ROUTER_RESPONSE_CACHE_BYTES,
    QUIRE_ROUTER_SHARED_BYTES,
    QUIRE_ROUTER_FALLBACKS,
    QUIRE_ROUTER_SHADOWS,
    QUIRE_ROUTER_COMPLEXITY,
    QUIRE_ROUTER_CONFIG_INFO,
    QUIRE_ROUTER_CONFIG_STATE,
    QUIRE_ROUTER_CONFIG_REFUSED,
    QUIRE_ROUTER_CONFIG_REFUSALS,
    QUIRE_ROUTER_QUEUE_LENGTH,
    QUIRE_ROUTER_QUEUE_BYTES,
    QUIRE_ROUTER_HELD_REQUESTS,
    QUIRE_ROUTER_QUEUE_WAIT_SECONDS,
    QUIRE_ROUTER_QUEUE_DROPPED,
)

# Metrics that an operator must expose after its first look at a resource.
OPERATOR_METRICS: tuple[str, ...] = (
    QUIRE_OPERATOR_RECONCILES,
    QUIRE_OPERATOR_RECONCILE_SECONDS,
    QUIRE_OPERATOR_QUEUE_DEPTH,
    QUIRE_OPERATOR_APPLIES,
    QUIRE_OPERATOR_SKIPPED_APPLIES,
    QUIRE_OPERATOR_PRUNES,
    QUIRE_OPERATOR_APPLY_ERRORS,
    QUIRE_OPERATOR_API_REQUESTS,
    QUIRE_OPERATOR_LEADER,
    QUIRE_OPERATOR_SERVICES,
)

# Histogram buckets in seconds. Wider than vLLM's: a decode step takes 3-10 ms and a queue may be empty.
BUCKETS_TTFT_S: tuple[float, ...] = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
BUCKETS_TOKEN_S: tuple[float, ...] = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80,
)  # fmt: skip
BUCKETS_REQUEST_S: tuple[float, ...] = (
    0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
