"""DynamoDB Local: jars, a launcher that keeps it on the loopback interface, one server."""

from tests.servers.dynamodb.server import DynamoDBInstall, GivenDynamoDB, LocalDynamoDB, install_dynamodb

__all__ = ["DynamoDBInstall", "GivenDynamoDB", "LocalDynamoDB", "install_dynamodb"]
