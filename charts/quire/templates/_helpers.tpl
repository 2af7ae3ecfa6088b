{{- /* Names. The operator knows the release by quire.fullname: it finds the routers' Deployment as <fullname>-router. */ -}}
{{- define "quire.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride -}}
{{- end }}

{{- define "quire.name" -}}
{{- printf "%s-%s" (include "quire.fullname" .root) .component -}}
{{- end }}

{{- /* The Service of the operator's external scaler for KEDA. */ -}}
{{- define "quire.scalerName" -}}
{{- printf "%s-scaler" (include "quire.fullname" .) -}}
{{- end }}

{{- define "quire.serviceAccount" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- default (ternary (include "quire.name" .) "default" $account.create) $account.name -}}
{{- end }}

{{- /* Labels that Services, budgets and the operator's own NetworkPolicies select by; they never change. */ -}}
{{- define "quire.selector" -}}
app.kubernetes.io/instance: {{ include "quire.fullname" .root | quote }}
quire.dev/role: {{ .component }}
{{- end }}

{{- /* Of a pod: no version among them, so that an upgrade that changes nothing else restarts nothing. */ -}}
{{- define "quire.podLabels" -}}
app.kubernetes.io/name: quire
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: quire
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "quire.selector" . }}
{{- end }}

{{- define "quire.labels" -}}
{{- $fixed := include "quire.podLabels" . | fromYaml -}}
{{- $_ := set $fixed "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ := set $fixed "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
{{- toYaml (merge $fixed .root.Values.commonLabels) -}}
{{- end }}

{{- /* name, namespace, labels of one of the chart's objects: dict "root" $ "component" "router", and "name" or "namespace" if other. */ -}}
{{- define "quire.metadata" -}}
name: {{ default (include "quire.name" .) .name }}
namespace: {{ default .root.Release.Namespace .namespace | quote }}
labels:
  {{- include "quire.labels" . | nindent 2 }}
{{- end }}

{{- /* An image's reference: dict "root" $ "image" (map) "tag" (the default). */ -}}
{{- define "quire.image" -}}
{{- $registry := default .image.registry .root.Values.global.imageRegistry -}}
{{- $name := ternary (printf "%s/%s" (trimSuffix "/" $registry) .image.repository) .image.repository (ne $registry "") -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .tag .image.tag) -}}
{{- end -}}
{{- end }}

{{- /* Pull secrets' names as a YAML list of strings. */ -}}
{{- define "quire.pullSecretNames" -}}
{{- range .Values.global.imagePullSecrets }}
- {{ ternary . (get (ternary dict . (kindIs "string" .)) "name") (kindIs "string" .) }}
{{- end }}
{{- end }}

{{- /* Every namespace in which operator and routers work, as a YAML list; with clusterWide it is not asked. */ -}}
{{- define "quire.namespaces" -}}
{{- concat (list .Release.Namespace) .Values.watchNamespaces | uniq | toYaml -}}
{{- end }}

{{- define "quire.watchArgs" -}}
{{- if .Values.clusterWide }}
- --watch-namespace=*
{{- else }}
{{- range include "quire.namespaces" . | fromYamlArray }}
- --watch-namespace={{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "quire.pdbApi" -}}
{{- ternary "policy/v1" "policy/v1beta1" (.Capabilities.APIVersions.Has "policy/v1") -}}
{{- end }}
