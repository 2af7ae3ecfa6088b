{{- /* Whole objects that components have alike. */ -}}

{{- define "quire.serviceAccountObject" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "quire.metadata" (dict "root" .root "component" .component "name" (include "quire.serviceAccount" .)) | nindent 2 }}
  {{- with $account.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
{{- end }}

{{- define "quire.pdb" -}}
{{- $pdb := (index .root.Values .component).pdb -}}
{{- if $pdb.enabled -}}
apiVersion: {{ include "quire.pdbApi" .root }}
kind: PodDisruptionBudget
metadata:
  {{- include "quire.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ $pdb.maxUnavailable }}
  {{- if semverCompare ">=1.27-0" .root.Capabilities.KubeVersion.Version }}
  # A pod that answers nobody must not keep its node from being drained.
  unhealthyPodEvictionPolicy: AlwaysAllow
  {{- end }}
  selector:
    matchLabels:
      {{- include "quire.selector" . | nindent 6 }}
{{- end }}
{{- end }}

{{- /* A Role with its binding, or cluster-wide ones: dict "root" "component" "rules" (YAML), and "namespace", or "cluster" true. */ -}}
{{- define "quire.role" -}}
{{- $scope := ternary "ClusterRole" "Role" (eq (default false .cluster) true) -}}
{{- $base := include "quire.name" . -}}
{{- $name := ternary (printf "%s-%s" .root.Release.Namespace $base) (printf "%s%s" $base (default "" .suffix)) (eq $scope "ClusterRole") -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}
metadata:
  name: {{ $name }}
  {{- if .namespace }}
  namespace: {{ .namespace | quote }}
  {{- end }}
  labels:
    {{- include "quire.labels" . | nindent 4 }}
rules:
  {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}Binding
metadata:
  name: {{ $name }}
  {{- if .namespace }}
  namespace: {{ .namespace | quote }}
  {{- end }}
  labels:
    {{- include "quire.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $scope }}
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ include "quire.serviceAccount" . }}
    namespace: {{ .root.Release.Namespace | quote }}
{{- end }}

{{- /* Both kinds of role of a component: dict "root" "component" "watched" "release" (rules as YAML). */ -}}
{{- define "quire.roles" -}}
{{- $call := . -}}
{{- if .root.Values.rbac.create }}
{{- if .root.Values.clusterWide }}
{{ include "quire.role" (dict "root" .root "component" .component "rules" .watched "cluster" true) }}
{{- else }}
{{- range $index, $namespace := include "quire.namespaces" .root | fromYamlArray }}
---
{{ include "quire.role" (dict "root" $call.root "component" $call.component "rules" $call.watched "namespace" $namespace) }}
{{- end }}
{{- end }}
---
{{ include "quire.role" (dict "root" .root "component" .component "rules" .release "namespace" .root.Release.Namespace "suffix" "-release") }}
{{- end }}
{{- end }}

{{- /* Peers in every namespace in which the release works. */ -}}
{{- define "quire.workerPeers" -}}
{{- if .Values.clusterWide -}}
- namespaceSelector: {}
  podSelector: {matchLabels: {quire.dev/role: worker}}
{{- else -}}
- namespaceSelector:
    matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values:
          {{- include "quire.namespaces" . | nindent 10 }}
  podSelector: {matchLabels: {quire.dev/role: worker}}
{{- end -}}
{{- end }}

{{- /* Egress that every one of our processes needs: names and the API server. */ -}}
{{- define "quire.commonEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{ include "quire.apiServerEgress" . }}
{{- end }}

{{- define "quire.apiServerEgress" -}}
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.apiServerCIDRs }}
  to:
    {{- range . }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  {{- end }}
{{- end }}

{{- define "quire.networkPolicy" -}}
{{- $policy := (index .root.Values .component).networkPolicy -}}
{{- if and .root.Values.networkPolicy.enabled $policy.enabled -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "quire.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "quire.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- $ingress := concat (.ingress | fromYamlArray) $policy.extraIngress }}
  ingress: {{- ternary " []" (toYaml $ingress | nindent 4) (empty $ingress) }}
  {{- $egress := concat (.egress | fromYamlArray) $policy.extraEgress }}
  egress: {{- ternary " []" (toYaml $egress | nindent 4) (empty $egress) }}
{{- end }}
{{- end }}
