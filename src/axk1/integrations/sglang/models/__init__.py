"""What ``SGLANG_EXTERNAL_MODEL_PACKAGE=axk1.integrations.sglang.models`` would name; the plugin registers it itself."""
