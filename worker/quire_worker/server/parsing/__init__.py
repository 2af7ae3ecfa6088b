"""From a model's text to the parts of a message: reasoning, content, tool calls. One incremental design, configured by format."""
