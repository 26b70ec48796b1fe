"""An S3 server: versitygw over a folder."""

from tests.servers.s3.server import GivenS3, LocalS3, install_s3

__all__ = ["GivenS3", "LocalS3", "install_s3"]
