"""One run function a flow. Flows write runs; they don't know of reports, exports or commands."""
