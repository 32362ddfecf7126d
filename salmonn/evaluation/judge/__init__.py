"""Whether answers are right where no string comparison can say it: by an endpoint, a local LLM, or containment."""
