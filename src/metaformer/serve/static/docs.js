// Swagger UI over the service's own description.

window.SwaggerUIBundle({
  url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null,
  defaultModelsExpandDepth: -1,
});
