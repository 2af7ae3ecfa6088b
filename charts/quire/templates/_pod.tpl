{{- /* What every pod of the chart has, from the keys that all components share: dict "root" $ "component" "router". */ -}}

{{- define "quire.podMetadata" -}}
{{- $values := index .root.Values .component -}}
labels:
  {{- toYaml (merge (include "quire.podLabels" . | fromYaml) $values.podLabels) | nindent 2 }}
{{- $annotations := merge (default dict .annotations) $values.podAnnotations }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "quire.podSpec" -}}
{{- $values := index .root.Values .component -}}
serviceAccountName: {{ include "quire.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
{{- with $values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "quire.pullSecretNames" .root | fromYamlArray }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $own := dict "matchLabels" (include "quire.selector" . | fromYaml) }}
{{- with get $values "topologySpreadConstraints" }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml (merge (dict) . (dict "labelSelector" $own)) | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "quire.containerFields" -}}
{{- $values := index .root.Values .component -}}
image: {{ include "quire.image" (dict "root" .root "image" $values.image "tag" .root.Chart.AppVersion) }}
imagePullPolicy: {{ $values.image.pullPolicy }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
{{- with $values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "quire.extraArgs" -}}
{{- range (index .root.Values .component).extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- /* Variables of our own processes; a later one may hold $(AN_EARLIER). */ -}}
{{- define "quire.podEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: TMPDIR
  value: /tmp
- name: XDG_CACHE_HOME
  value: /var/cache/quire
{{- end }}

{{- define "quire.podMounts" -}}
- {name: api-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/cache/quire}
{{- with (index .root.Values .component).extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* The API token is mounted by the pod, not by its account: it is short-lived, and a pod that does not ask for it has none. */ -}}
{{- define "quire.podVolumes" -}}
- name: api-token
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]
- {name: tmp, emptyDir: {sizeLimit: 2Gi}}
- {name: cache, emptyDir: {sizeLimit: 4Gi}}
{{- with (index .root.Values .component).extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
