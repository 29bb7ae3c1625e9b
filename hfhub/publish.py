#!/usr/bin/env python3
"""Publish a finished run, a cached teacher or a converted model on the Hugging Face Hub, and verify what is there.

    python hfhub/publish.py output/train/RUN OWNER/NAME --dry-run
"""
import sys

from timm_deitlt.cli.publish import publish_main

if __name__ == '__main__':
    sys.exit(publish_main())
