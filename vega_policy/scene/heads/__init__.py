"""Vision-language models that read a scene through the policy's prior and fusion."""
