"""The endpoints, one file for each of OpenAI's APIs."""
